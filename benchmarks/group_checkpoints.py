"""Whole checkpoints for groups: components with random weights, and small real schedulers and tokenizers.

Files hold headers and holes; `rank_probes.fill_weights` gives the loaded weights their values on the device. Only so
can a checkpoint of 57 GB be made, loaded and filled in seconds.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import architectures as arch

SHAPES = Path(__file__).parent.parent / "checkpoints" / "shapes"
Name = Literal["shapes", "Wan 1.3B", "Wan 14B", "Qwen-Image"]
_WORDS = ("a", "red", "circle", "moving", "left", "on", "black")
_NUM_WORDS = 120
"""Of both prompts, so that they have the same length: 512 tokens for Wan (padded), about 128 for Qwen-Image."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint and what is asked of it.

    Attributes:
        guidance: name of the pipeline's argument; above 1 each step has two calls, at 1 it has one.
        request: what the checkpoint is written from; None for a real one.
    """

    name: Name
    arguments: dict[str, Any]
    guidance: str = "guidance_scale"
    request: arch.Request | None = None
    shape: dict[str, int] = field(default_factory=dict)

    def write(self, scratch: Path, *, dtype: torch.dtype) -> Path:
        """The checkpoint's folder; written at the first call."""
        if self.request is None:
            return SHAPES
        folder = scratch / self.name.replace(" ", "_")
        if not (folder / "model_index.json").exists():
            _write(self.request, folder, dtype=dtype)
        return folder


def subject(name: Name, *, is_small: bool) -> Subject:
    """The subject of that name, or a tiny one of the same classes."""
    match name:
        case "shapes":
            return Subject(name, _arguments(64, 64, 9), shape=_shape(64, 64, 9))
        case "Qwen-Image":
            request = arch.qwen_request(is_small=is_small)
            size = request.shape.width
            arguments = _arguments(size, size)
            return Subject(name, arguments, "true_cfg_scale", request, _shape(size, size))
        case _:
            return _wan(name, is_small=is_small)


def _wan(name: Name, *, is_small: bool) -> Subject:
    shape = arch.Shape(64, 64, 5, text_tokens=16) if is_small else arch.VIDEO_480P[81]
    denoiser = arch.SMALL_WAN if is_small else arch.WAN_1_3B if name == "Wan 1.3B" else arch.WAN_14B
    # What is to be learnt of the 14B model does not depend on the encoder: one layer of it.
    encoder = arch.UMT5_XXL if name == "Wan 1.3B" else arch.UMT5_XXL.scaled(num_layers=1, vocab_size=1024)
    parts = {
        "text_encoder": arch.SMALL_UMT5 if is_small else encoder,
        "transformer": denoiser,
        "vae": arch.SMALL_WAN_VAE if is_small else arch.WAN_VAE,
    }
    request = arch.Request(name, "WanPipeline", parts, shape, num_steps=1, num_branches=2)
    sizes = (shape.width, shape.height, shape.num_frames)
    arguments = {**_arguments(*sizes), "max_sequence_length": shape.text_tokens}
    return Subject(name, arguments, request=request, shape=_shape(*sizes))


def _arguments(width: int, height: int, num_frames: int | None = None) -> dict[str, Any]:
    words = [_WORDS[index % len(_WORDS)] for index in range(_NUM_WORDS)]
    frames = {} if num_frames is None else {"num_frames": num_frames}
    negative = ["black"] * _NUM_WORDS
    return {"prompt": " ".join(words), "negative_prompt": " ".join(negative), "width": width, "height": height,
            **frames}  # fmt: skip


def _shape(width: int, height: int, num_frames: int | None = None) -> dict[str, int]:
    return {"width": width, "height": height, **({} if num_frames is None else {"num_frames": num_frames})}


def _write(request: arch.Request, folder: Path, *, dtype: torch.dtype) -> None:
    arch.write_sparse_checkpoint(request, folder, dtype=dtype)
    tokenizer = _word_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    _scheduler(request).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", type(tokenizer).__name__]
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))


def _scheduler(request: arch.Request) -> FlowMatchEulerDiscreteScheduler:
    if request.pipeline_class == "QwenImagePipeline":
        return FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
            shift_terminal=0.02,
        )  # fmt: skip
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=1024
    )
