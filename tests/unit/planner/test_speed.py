"""Planning is quick, also for large clusters, and starts quickly.

In CPU seconds: other work on the machine is not ours.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.checkpoint import read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.plan import PlanRequest
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_safetensors, write_wan

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


def test_planners_own_process_does_not_look_through_its_imports_for_garbage() -> None:
    code = (
        "import gc\nfrom planner.actor import PlannerActor\n"
        "counts = []\nfor process in ('shared', 'own'):\n"
        "    PlannerActor(process)\n    counts.append(gc.get_freeze_count())\n"
        "print(*counts, len(gc.get_objects()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    shared, own, looked_through = map(int, done.stdout.split())
    assert shared < 1000  # Python's own
    assert own > 30_000 > 100 * looked_through


def test_median_planning_time_is_under_50_ms(tmp_path: Path) -> None:
    checkpoint = str(write_wan(tmp_path, num_layers=40, width=5120, two_transformers=True, encoder_layers=24))
    cluster = cluster_from_flags(gpus_per_node=2, gpu_type="H100")
    times: list[float] = []
    for _ in range(20):
        started = time.process_time()
        plan_group(read_checkpoint(checkpoint), cluster, PlanRequest())
        times.append(time.process_time() - started)
    # The best of the runs stands in for an idle machine's median; a shared CI machine's own median gets some slack.
    assert min(times) < 0.05
    assert statistics.median(times) < 0.15


def test_reading_a_large_checkpoint_costs_a_few_times_the_parsing_of_its_headers(tmp_path: Path) -> None:
    folder = write_wan(tmp_path)
    names = [f"attn{i}.to_{x}.{w}" for i in (1, 2, 3) for x in ("q", "k", "v", "out") for w in ("weight", "bias")]
    shapes = {f"blocks.{block}.{name}": (64, 64) for block in range(200) for name in names}
    weights = write_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", shapes)
    with weights.open("rb") as file:
        raw = file.read(int.from_bytes(file.read(8), "little"))

    def best_of_10(run: Callable[[], object]) -> float:
        times: list[float] = []
        for _ in range(10):
            started = time.process_time()
            run()
            times.append(time.process_time() - started)
        return min(times)

    # The ratio does not depend on the machine: 6 to 8 here.
    assert best_of_10(lambda: read_checkpoint(str(folder))) < 12 * best_of_10(lambda: json.loads(raw))


@pytest.mark.parametrize("mixed", [1, 12])
def test_a_thousand_nodes_are_planned_for_in_under_a_second(tmp_path: Path, mixed: int) -> None:
    checkpoint = read_checkpoint(str(write_wan(tmp_path, num_layers=40, width=5120)))
    types = tuple(
        NodeType(f"n{i}", 1, 96.0, 1 + i % 8, "H100", gib * GIB, 512 * GIB, memory_label=str(gib))
        for i in range(1000)
        for gib in [40 + 4 * (i % mixed)]
    )
    started = time.process_time()
    plan_group(checkpoint, Cluster(types, "test"), PlanRequest())
    assert time.process_time() - started < 1.0
