"""Encoders of the common pipelines on another rank, called as those pipelines call them, answer as here, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from tests.unit.workers.test_remote_call import remote_part

TOKENS = torch.tensor([[2, 5, 6, 1], [2, 7, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LANGUAGE = {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
PICTURES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def hidden_states(model: Any) -> Any:
    return model(input_ids=TOKENS, attention_mask=MASK, output_hidden_states=True).hidden_states


def qwen_vl() -> PreTrainedModel:
    text = {**LANGUAGE, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def gemma_3() -> PreTrainedModel:
    config = hf.Gemma3Config(text_config=LANGUAGE, vision_config=PICTURES, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration(config)


ENCODERS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[Any], Any]]] = {
    "Wan": (
        lambda: hf.UMT5EncoderModel(hf.UMT5Config(**T5, feed_forward_proj="gated-gelu")),
        lambda model: model(TOKENS, MASK).last_hidden_state,
    ),
    "FLUX, SD3.5, CogVideoX, PixArt": (
        lambda: hf.T5EncoderModel(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
        lambda model: model(TOKENS, output_hidden_states=False)[0],
    ),
    "SDXL": (
        lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**SIZES, projection_dim=8, eos_token_id=1)),
        lambda model: (model(TOKENS, output_hidden_states=True)[0], hidden_states(model)[-2]),
    ),
    "Qwen-Image": (qwen_vl, lambda model: hidden_states(model)[-1]),
    "LTX-2": (gemma_3, lambda model: torch.stack(hidden_states(model), dim=-1)),
    "HunyuanVideo": (
        lambda: hf.LlamaModel(hf.LlamaConfig(**LANGUAGE)),
        lambda model: hidden_states(model)[-3],
    ),
    "Sana": (
        lambda: hf.Gemma2Model(hf.Gemma2Config(**LANGUAGE)),
        lambda model: model(TOKENS, attention_mask=MASK)[0],
    ),
    "Wan image to video": (
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**PICTURES, projection_dim=8)),
        lambda model: model(pixel_values=torch.ones(1, 3, 8, 8), output_hidden_states=True).hidden_states[-2],
    ),
    "FLUX Redux": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**PICTURES)),
        lambda model: model(torch.ones(1, 3, 8, 8)).last_hidden_state,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_elsewhere_answers_as_here(tmp_path: Path, name: str) -> None:
    make, call = ENCODERS[name]
    torch.manual_seed(0)
    model = make().eval()
    expected = call(model)
    with remote_part(model, tmp_path, library="transformers") as part:
        assert part.dtype is model.dtype
        answer = call(part)
    for one, other in zip(_tensors(answer), _tensors(expected), strict=True):
        assert torch.equal(one, other)
        assert one.any()


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)
