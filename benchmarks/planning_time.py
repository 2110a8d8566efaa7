"""How long planning takes: reading a checkpoint's headers and the search, for every skeleton, and for 1,000 nodes.

    python -m benchmarks.planning_time [--repeat N] [--model NAME ...]

In CPU milliseconds after import, so that other work on the machine does not count. Each repetition reads the checkpoint
anew, from local files (in page cache after the first).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import keep
from planner.checkpoint import read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.errors import InfeasiblePlanError
from planner.plan import Mode, PlanRequest
from planner.search import plan_group
from tests.tools.skeletons import SKELETONS, write_skeleton

GPUS = [(count, gib) for count in (1, 2) for gib in (24, 40, 80, 141)]
NUM_NODES = 1000
NUM_TYPES = 50


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
            rows.append(
                {"what": f"{name}, {NUM_NODES} nodes of {NUM_TYPES} types", "mode": "auto",
                 **_summary(_times(lambda path=path: _plan(path, _mixed_nodes(), Mode.AUTO), options.repeat))}
            )  # fmt: skip
    keep("planning_time", rows, folder=options.folder)
    return rows


def _time_on_all_gpus(path: str, mode: Mode, repeat: int) -> dict[str, float]:
    milliseconds: list[float] = []
    for count, gib in GPUS:
        cluster = cluster_from_flags(gpus_per_node=count, gpu_type="H100", gpu_memory_gib=gib, host_memory_gib=512)
        milliseconds += _times(lambda cluster=cluster: _plan(path, cluster, mode), repeat)
    return _summary(milliseconds)


def _plan(path: str, cluster: Cluster, mode: Mode) -> None:
    try:
        plan_group(read_checkpoint(path), cluster, PlanRequest(mode=mode))
    except InfeasiblePlanError:
        pass  # a refusal, with its ways out, is an answer too


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
    """Nodes of 50 shapes: 1 to 8 GPUs of 24 to 160 GiB."""
    types = [
        NodeType(f"n{i}", 1, 96.0, 1 + i % 8, "H100", (24 + 3 * (i % NUM_TYPES)) * GIB, 512 * GIB)
        for i in range(NUM_NODES)
    ]
    return Cluster(tuple(types), "benchmark")


if __name__ == "__main__":
    main()
