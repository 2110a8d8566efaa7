"""Every class with a context parallel plan in diffusers, with lengths that two ranks divide evenly, and others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.dist.weights.tiny_models import TinyModel, find_model, flux_inputs, ones, step, values, video, wan_inputs
from workers.sequence import UNSPLIT_CLASSES

Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SequenceCase:
    """One row of the table in docs/sequence.md.

    Attributes:
        model: class and tiny configuration.
        detail: what is special about the inputs, empty for the plain ones.
        even: inputs whose lengths are multiples of 4.
        uneven: inputs with odd lengths.
        quick: runs in `make test`.
    """

    model: TinyModel
    detail: str
    even: Inputs
    uneven: Inputs
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.model.class_name}{', ' if self.detail else ''}{self.detail}"

    @property
    def excluded(self) -> str | None:
        return UNSPLIT_CLASSES.get(self.model.class_name)


def partial_mask(length: int) -> torch.Tensor:
    """(1, length) of ones with two zeros at the end, as a padded prompt has."""
    mask = ones(1, length)
    mask[:, -2:] = 0
    return mask


def flux2(image: int, text: int) -> dict[str, Any]:
    inputs = flux_inputs(id_axes=4, guidance=torch.tensor([3.5]))
    return {**inputs, **tokens(image, text), "img_ids": grid(image, 4)[None], "txt_ids": grid(text, 4)[None]}


def flux(image: int, text: int) -> dict[str, Any]:
    inputs = flux_inputs(pooled_projections=values(1, 12), guidance=torch.tensor([3.5]))
    return {**inputs, **tokens(image, text), "img_ids": grid(image, 3), "txt_ids": grid(text, 3)}


def tokens(image: int, text: int) -> dict[str, Any]:
    return {"hidden_states": values(1, image, 8), "encoder_hidden_states": values(1, text, 24)}


def grid(count: int, num_axes: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None].repeat(1, num_axes)


def qwen(height: int, width: int, text: int) -> dict[str, Any]:
    return {
        "hidden_states": values(1, height * width, 16), "encoder_hidden_states": values(1, text, 24),
        "encoder_hidden_states_mask": partial_mask(text), "timestep": torch.tensor([0.5]),
        "img_shapes": [(1, height, width)],
    }  # fmt: skip


def qwen_edit(height: int, width: int, text: int) -> dict[str, Any]:
    """A picture to edit behind the noisy one, at timestep zero (Qwen-Image-Edit)."""
    noisy = (1, height, width)
    inputs = {**qwen(height, width, text), "img_shapes": [[noisy, (1, 2, width)]]}
    return {**inputs, "hidden_states": values(1, (height + 2) * width, 16)}


def ltx(height: int, width: int, text: int) -> dict[str, Any]:
    return {
        "hidden_states": values(1, height * width, 4), "encoder_hidden_states": values(1, text, 24),
        "timestep": step(), "encoder_attention_mask": partial_mask(text), "num_frames": 1, "height": height,
        "width": width,
    }  # fmt: skip


def ltx2(height: int, width: int, text: int) -> dict[str, Any]:
    inputs = {**find_model("LTX2VideoTransformer3DModel").inputs(), **ltx(height, width, text)}
    text_inputs = {"audio_encoder_hidden_states": values(1, text, 24), "audio_encoder_attention_mask": ones(1, text)}
    return {**inputs, **text_inputs, "timestep": step()[:, None].float()}


def wan_per_token(size: int) -> dict[str, Any]:
    """Each token at a noise level of its own (Wan 2.2 TI2V)."""
    count = 3 * (size // 2) ** 2
    return {**wan_inputs(hidden_states=video(4, size=size)), "timestep": torch.arange(count)[None] % 7}


def wan_with_picture(size: int) -> dict[str, Any]:
    """A picture's embedding beside the prompt (Wan 2.1 I2V); its 257 tokens are split by nobody."""
    return wan_inputs(hidden_states=video(4, size=size), encoder_hidden_states_image=values(1, 257, 12))


def minimax(num_video: int, num_audio: int, num_text: int) -> dict[str, Any]:
    length = num_text + num_video + num_audio
    order = torch.arange(length)
    return {
        "hidden_states": values(1, num_video, 16), "audio_hidden_states": values(1, num_audio, 4),
        "encoder_hidden_states": values(1, num_text, 24), "timestep": torch.tensor([0.2, 0.7]),
        "timestep_indices": order % 2, "token_tags": torch.tensor([1] * num_text + [0] * num_video + [2] * num_audio),
        "position_ids": order[:, None].repeat(1, 3), "text_indices": order[:num_text],
        "video_indices": order[num_text : num_text + num_video], "audio_indices": order[num_text + num_video :],
    }  # fmt: skip


def model(class_name: str, **changes: Any) -> TinyModel:
    """The tiny model of the sharding tests with four heads, so that four ranks can share it too."""
    tiny = find_model(class_name)
    head_dim = {"attention_head_dim": 8} if "cross_attention_dim" in tiny.config else {}  # that is heads times this
    return TinyModel(
        tiny.library, class_name, {**tiny.config, "num_attention_heads": 4, **head_dim, **changes}, tiny.inputs
    )


def twice(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch of two different rows, as pipelines make it that put both branches of guidance into one call."""

    def double(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape[0] != 1:
            return value
        return torch.cat([value, value * 0.5 if value.is_floating_point() else torch.ones_like(value)])

    return {name: double(value) for name, value in inputs.items()}


MINIMAX = TinyModel(
    "diffusers", "MiniMaxH3Transformer3DModel",
    {
        "num_attention_heads": 4, "attention_head_dim": 16, "hidden_size": 32, "num_layers": 2,
        "num_refiner_layers": 1, "ffn_dim": 48, "in_channels": 4, "audio_in_channels": 4, "text_dim": 24,
        "freq_dim": 32, "time_embed_hidden_dim": 32, "time_embed_dim": 16, "rope_freq_dim": 2,
    },
    lambda: minimax(8, 4, 8),
)  # fmt: skip

CASES = (
    SequenceCase(
        model("WanTransformer3DModel"), "", wan_inputs, lambda: wan_inputs(hidden_states=video(4, size=6)), quick=True
    ),
    SequenceCase(
        model("WanTransformer3DModel"), "a timestep a token", lambda: wan_per_token(8), lambda: wan_per_token(6)
    ),
    SequenceCase(
        model("WanTransformer3DModel", image_dim=12, added_kv_proj_dim=64), "with a picture",
        lambda: wan_with_picture(8), lambda: wan_with_picture(6),
    ),
    SequenceCase(model("QwenImageTransformer2DModel"), "", lambda: qwen(4, 4, 8), lambda: qwen(3, 5, 5), quick=True),
    SequenceCase(
        model("QwenImageTransformer2DModel", zero_cond_t=True), "clean picture beside",
        lambda: qwen_edit(4, 4, 8), lambda: qwen_edit(3, 5, 5),
    ),
    SequenceCase(
        model("FluxTransformer2DModel"), "", lambda: flux(16, 8), lambda: flux(15, 7), quick=True
    ),
    SequenceCase(model("Flux2Transformer2DModel"), "", lambda: flux2(16, 8), lambda: flux2(15, 7)),
    SequenceCase(model("LTXVideoTransformer3DModel"), "", lambda: ltx(4, 4, 8), lambda: ltx(3, 5, 5), quick=True),
    SequenceCase(model("LTX2VideoTransformer3DModel"), "", lambda: ltx2(4, 4, 8), lambda: ltx2(3, 5, 5)),
    SequenceCase(
        model("ChronoEditTransformer3DModel"), "", wan_inputs, lambda: wan_inputs(hidden_states=video(4, size=6))
    ),
    SequenceCase(
        model("HeliosTransformer3DModel"), "", wan_inputs, lambda: wan_inputs(hidden_states=video(4, size=6))
    ),
    SequenceCase(
        model("WanTransformer3DModel"), "two rows", lambda: twice(wan_inputs()),
        lambda: twice(wan_inputs(hidden_states=video(4, size=6))),
    ),
    SequenceCase(
        model("FluxTransformer2DModel"), "two rows", lambda: twice(flux(16, 8)), lambda: twice(flux(15, 7))
    ),
    SequenceCase(
        model("LTXVideoTransformer3DModel"), "two rows", lambda: twice(ltx(4, 4, 8)), lambda: twice(ltx(3, 5, 5))
    ),
    SequenceCase(MINIMAX, "", lambda: minimax(8, 4, 8), lambda: minimax(9, 5, 7)),
)  # fmt: skip


def find_case(name: str) -> SequenceCase:
    return next(case for case in CASES if case.name == name)
