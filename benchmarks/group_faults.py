"""A rank is killed, or stopped, while the other one waits for it inside a collective: what the request and GPUs see.

The victim is held inside a block of the denoiser, so that the other rank, whose blocks' weights are sharded over both,
has entered a collective that never ends. The same request is then made on a new group, as a service does.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import psutil
import ray
import torch

from benchmarks.group_runs import LANES_AND_SHARDS, UNCOMPILED, Bench, Spec
from benchmarks.rank_probes import is_device_busy, start
from workers.call_pace import CallDeadlines
from workers.calls import GenerateCall
from workers.errors import CallError, GroupDiedError
from workers.group import WorkerGroup

Kind = Literal["kill -9", "SIGSTOP"]
CASES: tuple[tuple[Kind, Literal["follower", "leader"]], ...] = (
    ("kill -9", "follower"), ("SIGSTOP", "follower"), ("kill -9", "leader"), ("SIGSTOP", "leader"),
)  # fmt: skip
DEADLINES = CallDeadlines(factor=20.0, floor_s=5.0, first_s=90.0)
"""A short floor, so that what is measured is not the wait: a service's default is 60 s."""
HEALTH_PERIOD_S = 2.0
"""As Serve asks the group deployment."""
_WAIT_S = 90.0
_POLL_S = 0.05
_FREE_BYTES = 64 * 2**20


class _Watched:
    """The request on the group that is struck, and Serve's health check beside it: who finds out first."""

    def __init__(self, group: WorkerGroup, call: GenerateCall) -> None:
        self.struck_at = float("inf")
        self.noticed: list[tuple[float, str]] = []
        self.end = "still waiting after the group was ended"
        self._found = threading.Event()
        self._group = group
        self._call = call
        self._request = threading.Thread(target=self._run, daemon=True)
        self._request.start()

    def wait(self) -> tuple[float, str]:
        """Seconds from the strike, and who noticed."""
        while not self._found.wait(HEALTH_PERIOD_S) and time.monotonic() - self.struck_at < _WAIT_S:
            threading.Thread(target=self._check, daemon=True).start()
        return self.noticed[0] if self.noticed else (float("nan"), "nobody")

    def join(self) -> str:
        """How the request ended."""
        self._request.join(_WAIT_S)
        return self.end

    def _run(self) -> None:
        try:
            self._group.generate(self._call)
            self.end = "a result"
        except (GroupDiedError, CallError) as error:
            self.end = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        self._note("the request")

    def _check(self) -> None:
        try:
            self._group.check()
        except GroupDiedError:
            self._note("the health check")

    def _note(self, by: str) -> None:
        self.noticed.append((time.monotonic() - self.struck_at, by))
        self._found.set()


def measure_faults(bench: Bench, on_row: Callable[[dict[str, Any]], None]) -> None:
    """Runs the cases one after the other; the group that one case fails over to is the next one's victim."""
    spec = Spec("shapes", LANES_AND_SHARDS, (), choices=UNCOMPILED, dtype="float32")
    plan = bench.plan(spec)
    used_before = used_gpu_bytes()
    group = bench.start(plan, has_weights=True, deadlines=DEADLINES)
    expected = group.generate(_call(bench)).output
    for kind, victim in CASES:
        row: dict[str, Any] = {"fault": kind, "victim": victim}
        pids = ray.get([rank.ping.remote() for rank in group._ranks], timeout=_WAIT_S)
        watched = _strike(bench, group, kind, pids, 0 if victim == "leader" else 1, row)
        bench.stop(group)
        began = watched.struck_at
        _wait_for_end(row, pids, began, used_before)
        row["request"] = watched.join()
        group = bench.start(plan, has_weights=True, deadlines=DEADLINES)
        row["restarted_s"] = time.monotonic() - began
        output = group.generate(_call(bench)).output
        row["answered_elsewhere_s"] = time.monotonic() - began
        row["same_result"] = torch.equal(output, expected)
        bench.say(f"{kind} of the {victim}: {row}")
        on_row(row)
    bench.stop(group)


def used_gpu_bytes() -> list[int]:
    """Memory in use on each GPU of the machine, by all processes; none without GPUs."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in done.stdout.split()]


def _call(bench: Bench) -> GenerateCall:
    what = bench.subject("shapes")
    return GenerateCall({**what.arguments, "num_inference_steps": 4, "output_type": "latent"}, seed=5)


def _strike(
    bench: Bench, group: WorkerGroup, kind: Kind, pids: list[int], victim: int, row: dict[str, Any]
) -> _Watched:
    """Runs the request, holds the victim inside a block, strikes it, and waits until the group is known to be dead."""
    ray.get(start(group._ranks[victim], hold_in_block), timeout=_WAIT_S)
    watched = _Watched(group, _call(bench))
    ray.get(start(group._ranks[victim], wait_until_held), timeout=_WAIT_S)
    row["other_rank_inside"] = _wait_for_other(group, 1 - victim, bench)
    watched.struck_at = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL if kind == "kill -9" else signal.SIGSTOP)
    row["noticed_s"], row["noticed_by"] = watched.wait()
    return watched


def _wait_for_other(group: WorkerGroup, rank: int, bench: Bench) -> bool | None:
    """Whether the other rank's device has work that does not end; not asked on CPUs, where its thread waits instead."""
    if bench.is_small:
        return None
    busy_since = None
    for _ in range(100):
        if not ray.get(start(group._ranks[rank], is_device_busy), timeout=_WAIT_S):
            busy_since = None
        elif busy_since is None:
            busy_since = time.monotonic()
        elif time.monotonic() - busy_since > 1.0:
            return True
        time.sleep(_POLL_S)
    return False


def _wait_for_end(row: dict[str, Any], pids: list[int], began: float, used_before: list[int]) -> None:
    """Until the ranks' processes are gone and the GPUs have their memory back."""
    row["processes_gone_s"] = _seconds_until(lambda: not any(map(_is_alive, pids)), began)
    if used_before:
        row["memory_free_s"] = _seconds_until(lambda: _is_free(used_before), began)
        row["left_mib"] = max(now - before for now, before in zip(used_gpu_bytes(), used_before, strict=True)) / 2**20


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_free(used_before: list[int]) -> bool:
    return all(now <= before + _FREE_BYTES for now, before in zip(used_gpu_bytes(), used_before, strict=True))


def _seconds_until(condition: Callable[[], bool], began: float) -> float:
    """Seconds from `began`; not a number if it does not come."""
    end = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > end:
            return float("nan")
        time.sleep(_POLL_S)
    return time.monotonic() - began


# What follows runs in the victim's process.


def hold_in_block(rank: Any) -> None:
    """From the next call on, the denoiser's second block waits and never ends."""
    block = rank._components.modules["transformer"].blocks[1]
    rank._is_held = threading.Event()

    def hold(*_: Any, **__: Any) -> Any:
        rank._is_held.set()
        threading.Event().wait()

    block.forward = hold


def wait_until_held(rank: Any) -> None:
    assert rank._is_held.wait(_WAIT_S), "the block was not reached"
