"""What a plan looks like in a terminal."""

import io
from pathlib import Path

import pytest

from planner.checkpoint import read_checkpoint
from planner.cluster import cluster_from_flags
from planner.plan import PlanRequest
from planner.report import draw_bar, format_bytes, render_plan
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan


def render(folder: Path, *, gpus: int) -> str:
    from rich.console import Console

    plan = plan_group(
        read_checkpoint(str(write_wan(folder))),
        cluster_from_flags(gpus_per_node=gpus, gpu_memory_gib=24 if gpus else None),
        PlanRequest(),
    )
    buffer = io.StringIO()
    Console(file=buffer, width=140).print(render_plan(plan))
    return buffer.getvalue()


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_plan_is_drawn_with_components_memory_and_rejected_options(tmp_path: Path, gpus: int) -> None:
    text = render(tmp_path, gpus=gpus)
    for word in ("WanPipeline", "transformer", "text_encoder", "vae", "denoise", "Rejected", "█"):
        assert word in text


@pytest.mark.parametrize(("used", "filled"), [(0, 0), (1, 1), (50, 5), (100, 10), (200, 10)])
def test_bar_is_filled_by_share(used: int, filled: int) -> None:
    assert draw_bar(used, 100, width=10) == "█" * filled + "░" * (10 - filled)


@pytest.mark.parametrize(
    ("count", "text"), [(5, "5 B"), (2048, "2.0 KiB"), (3 * 2**20, "3.0 MiB"), (5 * 2**30, "5.0 GiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text
