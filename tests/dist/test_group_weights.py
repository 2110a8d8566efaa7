"""Weights of real groups: torn files, refused host memory, streaming on two lanes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.plan import Compilation, Residency, ResidencyChoice
from tests.dist.test_group import ARGUMENTS, plain_pipeline
from tests.plans import make_wan_plan
from tests.range_server import serve
from workers.calls import GenerateCall
from workers.errors import GroupStartError
from workers.group import WorkerGroup

pytestmark = pytest.mark.usefixtures("ray_cluster")

STREAMED = {"transformer": Residency.LAYERWISE, "text_encoder": Residency.LAYERWISE}
LATENTS: dict[str, Any] = {**ARGUMENTS, "output_type": "latent"}


def copy_checkpoint(checkpoint: Path, target: Path) -> Path:
    return Path(shutil.copytree(checkpoint, target))


def cut(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_a_torn_file_is_found_before_the_group_serves(tiny_wan: Path, tmp_path: Path, component: str) -> None:
    checkpoint = copy_checkpoint(tiny_wan, tmp_path / "torn")
    (file,) = (checkpoint / component).glob("*.safetensors")
    cut(file)
    with pytest.raises(GroupStartError, match=rf"{component}/{file.name} is torn: its header describes \d+ bytes"):
        WorkerGroup.start(make_wan_plan(checkpoint), timeout_s=90)


def test_refused_host_memory_is_said_by_the_group_and_gives_the_same_result(tiny_wan: Path) -> None:
    plan = make_wan_plan(tiny_wan, residency=STREAMED)
    resident = ResidencyChoice(residency=Residency.RESIDENT)
    plan = plan.model_copy(
        update={
            "memory": plan.memory.model_copy(update={"host_capacity_bytes": 1000}),
            "fallbacks": (dict.fromkeys(("transformer", "text_encoder", "vae"), resident),),
        }
    )
    lines: list[str] = []
    group = WorkerGroup.start(plan, on_load=lambda event: lines.append(str(event)), timeout_s=90)
    try:
        result = group.generate(GenerateCall(LATENTS, seed=3))
    finally:
        group.shutdown()
    assert any("transformer in place" in line and "resident instead of as planned" in line for line in lines)
    assert torch.equal(result.output, plain_pipeline(tiny_wan, output_type="latent"))


def test_two_streaming_lanes_give_the_plain_pipelines_result(
    tiny_wan: Path,
    start_group: Callable[..., WorkerGroup],
) -> None:
    group = start_group(make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2, residency=STREAMED))
    expected = plain_pipeline(tiny_wan, output_type="latent")
    whole = sum(file.stat().st_size for file in (tiny_wan / "transformer").glob("*.safetensors"))
    assert group.describe().weight_bytes_read[1] < 0.5 * whole  # rank 0 fills the blocks for both
    for _ in range(2):
        assert torch.equal(group.generate(GenerateCall(LATENTS, seed=3)).output, expected)


def test_a_remote_checkpoint_is_fetched_once_for_both_ranks(
    tiny_wan: Path,
    node_caches: Path,
    start_group: Callable[..., WorkerGroup],
) -> None:
    plan = make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2)
    with serve(tiny_wan) as (url, sent):
        group = start_group(plan.model_copy(update={"checkpoint": url}))
    (weights,) = (tiny_wan / "vae").glob("*.safetensors")
    encoder = (tiny_wan / "text_encoder" / "model.safetensors").stat().st_size
    assert sent["model.safetensors"] == encoder
    assert sent[weights.name] == weights.stat().st_size + (tiny_wan / "transformer" / weights.name).stat().st_size
    assert len([entry for entry in (node_caches / "checkpoints").iterdir() if entry.is_dir()]) == 1
    expected = plain_pipeline(tiny_wan, output_type="latent")
    assert torch.equal(group.generate(GenerateCall(LATENTS, seed=3)).output, expected)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
@pytest.mark.timeout(300)
def test_compiled_blocks_give_the_result_and_are_kept_on_the_node(tiny_wan: Path, node_caches: Path) -> None:
    plan = make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2, residency={"transformer": Residency.LAYERWISE})
    group = WorkerGroup.start(plan.model_copy(update={"compile": Compilation.BLOCKS}), timeout_s=90)
    try:
        result = group.generate(GenerateCall(LATENTS, seed=3))
    finally:
        group.shutdown()
    assert torch.allclose(result.output, plain_pipeline(tiny_wan, output_type="latent"), atol=1e-4)
    for rank in result.ranks:
        assert rank.num_graphs > 0, f"rank {rank.world_rank} says nothing of its graphs"
        assert rank.num_graph_breaks == 0, rank.graph_break_reasons
    assert any((node_caches / "compiled").rglob("*.so")) or any((node_caches / "compiled").rglob("*.py"))
