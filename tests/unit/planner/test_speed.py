"""Planning is quick, also for large clusters, and starts quickly.

In CPU seconds: other work on the machine is not ours.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.checkpoint import read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.plan import PlanRequest
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

HEAVY = {"torch", "ray", "diffusers", "transformers", "safetensors", "rich", "yaml", "fsspec", "numpy"}


def test_planning_loads_no_heavy_library_and_takes_under_half_a_second(tmp_path: Path) -> None:
    code = (
        "import sys, time\nstarted = time.process_time()\n"
        "from planner.checkpoint import read_checkpoint\nfrom planner.cluster import resolve_cluster\n"
        "from planner.plan import PlanRequest\nfrom planner.search import plan_group\nimport planner.report\n"
        f"checkpoint = read_checkpoint({str(write_wan(tmp_path))!r})\n"
        "plan_group(checkpoint, resolve_cluster(default_file=None), PlanRequest(device='cpu'))\n"
        "print(time.process_time() - started, *{name.partition('.')[0] for name in sys.modules})"
    )
    seconds: list[float] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        first, *modules = done.stdout.split()
        assert not HEAVY & set(modules)
        seconds.append(float(first))
    assert min(seconds) < 0.5


def test_median_planning_time_is_under_50_ms(tmp_path: Path) -> None:
    checkpoint = str(write_wan(tmp_path, num_layers=40, width=5120, two_transformers=True, encoder_layers=24))
    cluster = cluster_from_flags(gpus_per_node=2, gpu_type="H100")
    times: list[float] = []
    for _ in range(15):
        started = time.process_time()
        plan_group(read_checkpoint(checkpoint), cluster, PlanRequest())
        times.append(time.process_time() - started)
    # The best of the runs stands in for an idle machine's median; a shared CI machine's own median gets some slack.
    assert min(times) < 0.05
    assert statistics.median(times) < 0.15


@pytest.mark.parametrize("mixed", [1, 12])
def test_a_thousand_nodes_are_planned_for_in_under_a_second(tmp_path: Path, mixed: int) -> None:
    checkpoint = read_checkpoint(str(write_wan(tmp_path, num_layers=40, width=5120)))
    types = tuple(
        NodeType(f"n{i}", 1, 96.0, 1 + i % 8, "H100", (40 + 4 * (i % mixed)) * GIB, 512 * GIB) for i in range(1000)
    )
    started = time.process_time()
    plan_group(checkpoint, Cluster(types, "test"), PlanRequest())
    assert time.process_time() - started < 1.0
