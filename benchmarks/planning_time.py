"""How long planning takes: reading a checkpoint's headers and the search, for every skeleton, and for 1,000 nodes.

    python -m benchmarks.planning_time [--repeat N] [--model NAME ...]

In CPU milliseconds after import, so that other work on the machine does not count. Each repetition reads the checkpoint
anew, from local files (in page cache after the first). What was imported is left out of garbage collections.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import keep
from planner.actor import leave_imports_out_of_collections
from planner.checkpoint import read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.errors import InfeasiblePlanError
from planner.hardware import find_gpu, gpu_names
from planner.plan import Mode, PlanRequest
from planner.search import plan_group
from tests.tools.skeletons import SKELETONS, write_skeleton

GPUS = [(count, gib) for count in (1, 2) for gib in (24, 40, 80, 141)]
NUM_NODES = 1000
NUM_SIZES = 50


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures, keeps and prints the rows, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", action="append", choices=list(SKELETONS))
    parser.add_argument("--folder", type=Path, help="where the figures are kept")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.model or SKELETONS:
            path = str(write_skeleton(Path(scratch), name))
            for mode in Mode:
                rows.append({"what": name, "mode": mode.value, **_time_on_all_gpus(path, mode, options.repeat)})
            mixed = _times(partial(_plan_on_mixed_nodes, path), options.repeat)
            rows.append(
                {"what": f"{name}, {NUM_NODES} nodes of {len(gpu_names())} types", "mode": "auto",
                 **_summary(mixed)}
            )  # fmt: skip
    keep("planning_time", rows, folder=options.folder)
    return rows


def _time_on_all_gpus(path: str, mode: Mode, repeat: int) -> dict[str, float]:
    milliseconds: list[float] = []
    for count, gib in GPUS:
        cluster = cluster_from_flags(gpus_per_node=count, gpu_type="H100", gpu_memory_gib=gib, host_memory_gib=512)
        milliseconds += _times(partial(_plan, path, cluster, mode), repeat)
    return _summary(milliseconds)


def _plan_on_mixed_nodes(path: str) -> None:
    _plan(path, _mixed_nodes(), Mode.AUTO)


def _plan(path: str, cluster: Cluster, mode: Mode) -> None:
    with contextlib.suppress(InfeasiblePlanError):  # a refusal, with its ways out, is an answer too
        plan_group(read_checkpoint(path), cluster, PlanRequest(mode=mode))


def _times(run: Callable[[], None], repeat: int) -> list[float]:
    milliseconds = []
    for _ in range(repeat):
        started = time.process_time()
        run()
        milliseconds.append(1e3 * (time.process_time() - started))
    return milliseconds


def _summary(milliseconds: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(milliseconds), "max_ms": max(milliseconds)}


def _mixed_nodes() -> Cluster:
    """Nodes with 1 to 8 GPUs of all known types, half of them with less memory than usual."""
    types = []
    for i in range(NUM_NODES):
        gpu = find_gpu(gpu_names()[i % len(gpu_names())])
        assert gpu is not None
        memory = gpu.memory_bytes * (100 - i % NUM_SIZES) // 100
        label = f"{memory / GIB:.2f}"
        types.append(NodeType(f"n{i}", 1, 96.0, 1 + i % 8, gpu.name, memory, 512 * GIB, memory_label=label))
    return Cluster(tuple(types), "benchmark")


if __name__ == "__main__":
    leave_imports_out_of_collections()  # as the planner's own process does
    main()
