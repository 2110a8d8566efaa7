"""Text encoders and autoencoders on another rank than the leader's: the same results, no weights on the leader."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from planner.checkpoint import read_checkpoint
from planner.cluster import cluster_from_flags
from planner.plan import ComponentKind, Plan, PlanRequest
from planner.search import plan_group
from tests.dist.holding import cancel_inside
from tests.dist.test_group import ARGUMENTS, plain_pipeline, weight_bytes
from tests.plans import make_wan_plan
from workers.calls import GenerateCall
from workers.errors import GroupStartError
from workers.group import WorkerGroup

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def group(tiny_wan: Path, ray_cluster: None) -> Iterator[WorkerGroup]:
    """The leader has the denoiser only; the other rank has all."""
    plan = make_wan_plan(tiny_wan, num_ranks=2, cfg_degree=2, ranks={"text_encoder": 1, "vae": 1})
    group = WorkerGroup.start(plan, timeout_s=180)
    yield group
    group.shutdown()


def test_results_are_those_of_one_process(tiny_wan: Path, group: WorkerGroup) -> None:
    latents = plain_pipeline(tiny_wan, output_type="latent")
    pixels = plain_pipeline(tiny_wan)
    first = group.generate(GenerateCall({**ARGUMENTS, "output_type": "latent"}, seed=3))
    second = group.generate(GenerateCall(ARGUMENTS, seed=3))
    assert torch.equal(first.output, latents)
    assert np.array_equal(second.output, (pixels * 255).round().astype(np.uint8))
    leader, other = second.ranks
    assert leader.component_rows == {"transformer": 3}
    assert other.component_rows == {"transformer": 3, "text_encoder": 2, "vae.decode": 1}
    assert leader.weight_bytes_read <= weight_bytes(tiny_wan, "transformer")


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_cancelled_call_ends_between_blocks_on_the_other_rank(group: WorkerGroup, stage: str) -> None:
    expected = group.generate(GenerateCall(ARGUMENTS, seed=3)).output
    assert cancel_inside(group, GenerateCall(ARGUMENTS, seed=9), stage, world_rank=1) == 0
    assert np.array_equal(group.generate(GenerateCall(ARGUMENTS, seed=3)).output, expected)


def test_a_plan_of_the_planner_with_the_text_encoder_elsewhere_gives_the_same(
    tiny_wan: Path, start_group: Callable[[Plan], WorkerGroup]
) -> None:
    request = PlanRequest(device="cpu", cfg_degree=2, component_ranks={"text_encoder": 1}, cpus_per_rank=0.5)
    cluster = cluster_from_flags(gpus_per_node=0, host_memory_gib=16)
    plan = plan_group(read_checkpoint(str(tiny_wan)), cluster, request)
    assert plan.ranks_of_remote_components() == {"text_encoder": 1}
    result = start_group(plan).generate(GenerateCall({**ARGUMENTS, "output_type": "latent"}, seed=3))
    assert torch.equal(result.output, plain_pipeline(tiny_wan, output_type="latent"))
    leader, other = result.ranks
    assert "text_encoder" not in leader.component_rows
    assert other.component_rows["text_encoder"] == 2
    without = weight_bytes(tiny_wan, "transformer") + weight_bytes(tiny_wan, "vae")
    assert leader.weight_bytes_read <= without


def test_a_component_of_the_loop_must_be_on_the_leader_too(tiny_wan: Path) -> None:
    plan = make_wan_plan(tiny_wan, num_ranks=2)
    components = tuple(
        component.model_copy(update={"ranks": (1,)}) if component.kind is ComponentKind.DENOISER else component
        for component in plan.components
    )
    with pytest.raises(GroupStartError, match="transformer is planned for ranks"):
        WorkerGroup.start(plan.model_copy(update={"components": components}), timeout_s=5)
