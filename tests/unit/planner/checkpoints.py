"""Checkpoint folders for planner tests: real layout and true headers, no torch, sparse tensor data."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "F8_E4M3": 1}
Shapes = Mapping[str, tuple[int, ...]]


def write_safetensors(path: Path, shapes: Shapes, *, dtype: str = "BF16") -> Path:
    """A safetensors file with a true header and a hole instead of data."""
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        size = SIZES[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return write_raw(path, json.dumps(header).encode(), data_bytes=position)


def write_raw(path: Path, header: bytes, *, data_bytes: int = 0, length: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header) if length is None else length))
        file.write(header)
        file.truncate(8 + len(header) + data_bytes)
    return path


def write_json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def blocks(container: str, count: int, *, width: int = 64) -> dict[str, tuple[int, ...]]:
    """`count` blocks of `width` x `width` x 2 and a norm, and a projection outside them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(count):
        shapes[f"{container}.{i}.attn.to_q.weight"] = (width, width)
        shapes[f"{container}.{i}.ff.net.0.weight"] = (width, width)
        shapes[f"{container}.{i}.norm.weight"] = (width,)
    shapes["proj_out.weight"] = (width, width)
    return shapes


def write_wan(
    folder: Path,
    *,
    num_layers: int = 4,
    width: int = 64,
    two_transformers: bool = False,
    dtype: str = "BF16",
    encoder_layers: int = 2,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """A Wan-like checkpoint: transformer(s), UMT5 text encoder, autoencoder, tokenizer, scheduler."""
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if two_transformers else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "boundary_ratio": 0.5 if two_transformers else None,
        **(extra or {}),
    }
    write_json(folder / "model_index.json", index)
    config = {
        "num_attention_heads": max(1, width // 16),
        "attention_head_dim": 16,
        "patch_size": [1, 2, 2],
        "ffn_dim": width,
    }
    for name in ("transformer", *(["transformer_2"] if two_transformers else [])):
        write_json(folder / name / "config.json", {"_class_name": "WanTransformer3DModel", **config})
        write_safetensors(
            folder / name / "diffusion_pytorch_model.safetensors",
            blocks("blocks", num_layers, width=width),
            dtype=dtype,
        )
    write_json(folder / "text_encoder" / "config.json", {"d_model": width, "num_heads": 4})
    write_safetensors(
        folder / "text_encoder" / "model.safetensors", blocks("encoder.block", encoder_layers, width=width), dtype=dtype
    )
    write_json(folder / "vae" / "config.json", {"z_dim": 4, "base_dim": 8, "dim_mult": [1, 1, 1, 1]})
    write_safetensors(
        folder / "vae" / "diffusion_pytorch_model.safetensors", {"decoder.conv.weight": (16, 16)}, dtype=dtype
    )
    return folder
