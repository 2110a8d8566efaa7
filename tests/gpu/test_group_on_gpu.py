"""Groups on a real GPU: every residency, and two ranks that share the card, against the plain pipeline there.

python -m pytest -c tests/gpu/pytest.ini tests/gpu
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline

from planner.plan import Residency
from tests.plans import make_wan_plan
from tests.ray_session import local_ray
from tests.tiny_checkpoints import make_tiny_wan
from workers.calls import GenerateCall
from workers.group import WorkerGroup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 64,
    "width": 64,
    "num_frames": 5,
    "num_inference_steps": 4,
    "output_type": "latent",
}
ALL_OFFLOADED = dict.fromkeys(("transformer", "text_encoder", "vae"), Residency.OFFLOAD)
STREAMED = dict.fromkeys(("transformer", "text_encoder"), Residency.LAYERWISE)


@pytest.fixture(scope="module")
def ray_on_gpu() -> Iterator[None]:
    with local_ray(num_gpus=1):
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("wan"), num_layers=6)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> torch.Tensor:
    pipeline = WanPipeline.from_pretrained(checkpoint).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**ARGUMENTS, generator=torch.Generator().manual_seed(3)).frames.cpu()


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"residency": ALL_OFFLOADED},
        {"residency": STREAMED},
        {"residency": STREAMED, "num_resident_blocks": 2},
        {"num_ranks": 2, "cfg_degree": 2},
        {"num_ranks": 2, "cfg_degree": 2, "residency": STREAMED},
    ],
    ids=["resident", "offload", "layerwise", "layerwise_2_resident", "cfg2_shared", "cfg2_shared_layerwise"],
)
def test_result_equals_the_plain_pipeline_on_this_gpu(
    ray_on_gpu: None, checkpoint: Path, expected: torch.Tensor, choices: dict[str, Any]
) -> None:
    group = WorkerGroup.start(make_wan_plan(checkpoint, device="cuda", **choices), timeout_s=120)
    try:
        group.generate(GenerateCall(ARGUMENTS, seed=3))
        result = group.generate(GenerateCall(ARGUMENTS, seed=3))
    finally:
        group.shutdown()
    num_ranks = choices.get("num_ranks", 1)
    assert torch.equal(result.output, expected)
    assert [stats.denoiser_rows for stats in result.ranks] == [8 // num_ranks] * num_ranks
    assert all(0 < stats.peak_bytes < (stats.device_used_bytes or 0) for stats in result.ranks)
