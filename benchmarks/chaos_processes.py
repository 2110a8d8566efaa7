"""The processes of a running service, as the operating system sees them, and signals to them."""

import os
import random
import signal
import time
from collections.abc import Callable

import psutil

RANK = "ray::RankActor"
COORDINATOR = "ray::ServeReplica:heliograph:Group"
INGRESS = "ray::ServeReplica:heliograph:Ingress"
CONTROLLER = "ray::ServeController"
PROXY = "ray::ProxyActor"
PLANNER = "ray::PlannerActor"
SERVING = (RANK, COORDINATOR, INGRESS, CONTROLLER, PROXY)
_POLL_S = 0.02
SLOW_POLL_S = 0.5  # for what costs the service or this machine something to look at


def pids_of(start: str) -> list[int]:
    """Processes whose command line begins so; Ray's workers are descendants of this process."""
    return sorted(p.pid for p in psutil.Process().children(recursive=True) if _command_line(p).startswith(start))


def count_processes() -> dict[str, int]:
    """How many processes of each serving kind there are."""
    lines = [_command_line(process) for process in psutil.Process().children(recursive=True)]
    return {start: sum(line.startswith(start) for line in lines) for start in SERVING}


def signal_one_of(start: str, number: signal.Signals) -> int:
    """Sends a signal to a random process; its id."""
    wait_until(lambda: bool(pids_of(start)), f"a process {start}", timeout_s=60)
    victim = random.choice(pids_of(start))
    os.kill(victim, number)
    return victim


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float, poll_s: float = _POLL_S) -> float:
    """Polls a condition; the seconds that it took.

    Raises:
        TimeoutError: it did not come true; says what was waited for.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() > start + timeout_s:
            raise TimeoutError(f"not in {timeout_s:g} s: {what}")
        time.sleep(poll_s)
    return time.monotonic() - start


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return ""
