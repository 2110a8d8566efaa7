"""What can go wrong under `benchmarks.chaos`: real signals to real processes, and clients that misbehave."""

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import psutil

from planner.actor import get_planner_actor

OVERLOAD = 80  # five times what two ingress replicas admit at eight each


class Target(Protocol):
    """What faults need of the service's client."""

    def picture(self, seed: int) -> Any: ...
    def leave_in_mid_step(self, seed: int) -> Any: ...


Fault = Callable[[Target, Executor], list["Future[Any]"]]
"""Does the fault; returns the answers to requests that were part of it."""


def pids_of(start: str) -> list[int]:
    """Processes whose command line begins so; Ray's workers are descendants of this process."""
    return sorted(p.pid for p in psutil.Process().children(recursive=True) if _command_line(p).startswith(start))


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float) -> None:
    """Polls a condition; raises with what was waited for."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not in {timeout_s:g} s: {what}")
        time.sleep(0.1)


def _signal_one_of(start: str, number: signal.Signals) -> Fault:
    def act(_: Target, __: Executor) -> list["Future[Any]"]:
        wait_until(lambda: bool(pids_of(start)), f"a process {start}", timeout_s=30)
        os.kill(random.choice(pids_of(start)), number)
        return []

    return act


def _kill_planner(target: Target, pool: Executor) -> list["Future[Any]"]:
    """Serving does without it: it is there for the next deploy, and gone when nobody holds it."""
    held = get_planner_actor()
    try:
        return _signal_one_of("ray::PlannerActor", signal.SIGKILL)(target, pool)
    finally:
        del held


def _disconnect(service: Target, pool: Executor) -> list["Future[Any]"]:
    return [pool.submit(service.leave_in_mid_step, 12) for _ in range(3)]


def _overload(service: Target, pool: Executor) -> list["Future[Any]"]:
    return [pool.submit(service.picture, 11 + index % 3) for index in range(OVERLOAD)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return ""


FAULTS: dict[str, Fault] = {
    "rank_killed": _signal_one_of("ray::RankActor", signal.SIGKILL),
    "rank_stopped": _signal_one_of("ray::RankActor", signal.SIGSTOP),
    "coordinator_killed": _signal_one_of("ray::ServeReplica:heliograph:Group", signal.SIGKILL),
    "ingress_killed": _signal_one_of("ray::ServeReplica:heliograph:Ingress", signal.SIGKILL),
    "controller_killed": _signal_one_of("ray::ServeController", signal.SIGKILL),
    "planner_killed": _kill_planner,
    "clients_leave": _disconnect,
    "overload": _overload,
}
