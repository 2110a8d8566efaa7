"""A checkpoint with a ControlNet, planned by the planner, on real ranks: ControlNet and denoiser are both divided."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from planner.checkpoint import read_checkpoint
from planner.cluster import Cluster, NodeType
from planner.plan import ComponentKind, Plan, PlanRequest
from planner.search import plan_group
from tests.seam.equality import BATCHED_TOLERANCE, one_thread, relative_error
from tests.tiny_controlnets import CONTROL_ARGUMENTS, make_control_image, make_tiny_controlnet
from workers.calls import GenerateCall
from workers.group import WorkerGroup

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]
NODE = Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 64 << 30),), "test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_controlnet(tmp_path_factory.mktemp("controlnet"))


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> Plan:
    return plan_group(read_checkpoint(str(checkpoint)), NODE, PlanRequest(cfg_degree=2, cpus_per_rank=0.5))


@pytest.fixture
def group(plan: Plan) -> Iterator[WorkerGroup]:
    group = WorkerGroup.start(plan, timeout_s=180)
    yield group
    group.shutdown()


def test_the_plan_puts_a_controlnet_on_every_rank(plan: Plan) -> None:
    controlnet = next(component for component in plan.components if component.name == "controlnet")
    assert (controlnet.kind, controlnet.ranks) == (ComponentKind.CONTROLNET, (0, 1))


def test_two_ranks_halve_the_work_of_denoiser_and_controlnet(checkpoint: Path, group: WorkerGroup) -> None:
    arguments = {**CONTROL_ARGUMENTS, "image": make_control_image(), "output_type": "latent"}
    with one_thread():
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(checkpoint, safety_checker=None)
        expected = pipeline(**arguments, generator=torch.Generator().manual_seed(3)).images
        without = pipeline(
            **arguments, controlnet_conditioning_scale=0.0, generator=torch.Generator().manual_seed(3)
        ).images
    first = group.generate(GenerateCall(arguments, seed=3))
    second = group.generate(GenerateCall(arguments, seed=3))
    assert relative_error(without, expected) > 0.01, "the ControlNet has no effect, the test would show nothing"
    assert relative_error(first.output, expected) <= BATCHED_TOLERANCE
    assert relative_error(second.output, expected) <= BATCHED_TOLERANCE
    assert (first.seam.learnt_signatures, second.seam.learnt_signatures) == (2, 0)
    for stats in second.ranks:
        assert stats.component_rows == {"unet": 4, "controlnet": 4}  # of 4 steps of 2 rows each
        assert stats.denoiser_rows == 4
