"""OmniGen: up to three branches (text and picture, neither, picture) in one call, of which some rows hold pictures."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

from tests.seam.parts import build, make_transformer, picture
from tests.seam.tiny import Case, TinyPipeline
from tests.tiny_checkpoints import make_word_tokenizer

EIGHTH = {
    "block_out_channels": (8,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4, "latent_channels": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 4, "scaling_factor": 1.0,
}  # fmt: skip


def omnigen(**arguments: Any) -> TinyPipeline:
    if not hasattr(processor_omnigen, "transforms"):  # the pipeline takes four functions from torchvision
        processor_omnigen.transforms = SimpleNamespace(
            Compose=_compose, Lambda=lambda function: function, ToTensor=lambda: _to_tensor, Normalize=_normalize
        )
        pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    pipeline = build(
        "OmniGenPipeline", transformer=make_transformer("OmniGenTransformer2DModel"), tokenizer=make_word_tokenizer(),
        scheduler=build("FlowMatchEulerDiscreteScheduler"), vae=build("AutoencoderKL", **EIGHTH).eval(),
    )  # fmt: skip
    return TinyPipeline(pipeline, {"prompt": "a red circle", "height": 64, "width": 64, **arguments})


def make_from_text() -> TinyPipeline:
    return omnigen()


def make_from_picture() -> TinyPipeline:
    """Pictures come as one list, with a dictionary that says which rows they belong to."""
    return omnigen(prompt="a red <img><|image_1|></img> circle", input_images=[picture(64)], img_guidance_scale=1.6)


def _compose(steps: list[Any]) -> Any:
    def apply(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return apply


def _to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def _normalize(mean: list[float], std: list[float], **_: Any) -> Any:
    return lambda image: (image - mean[0]) / std[0]


CASES = (
    Case("OmniGenPipeline", "OmniGen", "batched", make_from_text),
    Case("OmniGenPipeline with a picture", "OmniGen", "batched", make_from_picture, is_representative=True),
)
