"""The safetensors files of one component: which they are, what lies where in them, and whether they are whole.

Only headers are read here. Every offence names its file.
"""

import json
import logging
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from workers.errors import LoadError

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 * 2**20  # a 53 MB header took 3.7 s and 1.1 GiB to read; real ones are below 1 MB

_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file: row-major, `num_bytes` from `offset` (absolute, in bytes)."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    def offset_of(self, element: int) -> int:
        """Absolute offset in bytes of an element, counted row-major."""
        return self.offset + element * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold a component's weights, and whether an index file said so."""

    files: tuple[Path, ...]
    indexed: bool


def find_weight_files(
    folder: Path, *, library: Literal["diffusers", "transformers"], variant: str | None = None
) -> WeightFiles:
    """Finds the component's safetensors files: by its index, or the single file.

    A component that lacks the variant is read from its plain files, as diffusers does; that is logged.

    Raises:
        LoadError: there is no safetensors file, or the index names one that is missing or outside the folder.
    """
    stem = _STEMS[library]
    variants = (variant, None) if variant else (None,)
    for candidate in variants:
        for index in _index_names(stem, candidate):
            if (folder / index).is_file():
                _log_variant(folder, variant, candidate)
                return WeightFiles(_indexed_files(folder / index), indexed=True)
        single = folder / (f"{stem}.{candidate}.safetensors" if candidate else f"{stem}.safetensors")
        if single.is_file():
            _log_variant(folder, variant, candidate)
            return WeightFiles((single,), indexed=False)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    raise LoadError(
        f"{folder} holds no {stem}.safetensors and no index of it (found: {found}). "
        f"Only safetensors files are read; convert other formats with `save_pretrained(safe_serialization=True)`."
    )


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Reads all headers and checks them against the files' sizes.

    Raises:
        LoadError: a file is short, torn, has gaps, overlaps, or a name that another file has too.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, stored in _read_header(file).items():
            if name in tensors:
                raise LoadError(
                    f"{file}: tensor {name!r} is in {tensors[name].file.name} too; keep it in one file only"
                )
            tensors[name] = stored
    return tensors


def _index_names(stem: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return (f"{stem}.safetensors.index.json",)
    return (f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors.index.json")


def _log_variant(folder: Path, wanted: str | None, used: str | None) -> None:
    if wanted != used:
        logger.info("%s has no %r variant of its weights: the plain files are read", folder, wanted)


def _indexed_files(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise LoadError(f"{index} is not an index of weights: {error!r}") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise LoadError(f"{index} names {name!r}; only safetensors files in the same folder are read")
        if not (index.parent / name).is_file():
            raise LoadError(f"{index} names {name}, which is missing; fetch the checkpoint again")
    return tuple(index.parent / name for name in names)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise LoadError(f"{file} is torn: {file_bytes} bytes, too short for a safetensors header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > file_bytes:
            raise LoadError(
                f"{file} is torn or no safetensors file: it states a header of {header_bytes} bytes, "
                f"has {file_bytes} bytes, and at most {MAX_HEADER_BYTES} are read"
            )
        try:
            header = json.loads(stream.read(header_bytes), object_pairs_hook=_refuse_duplicates)
            header.pop("__metadata__", None)
            tensors = {name: _parse_entry(file, 8 + header_bytes, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{file} has a broken safetensors header: {error!r}") from error
    _check_layout(file, tensors, first=8 + header_bytes, last=file_bytes)
    return tensors


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("the same name twice")
    return entries


def _parse_entry(file: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
    if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for shape {list(shape)} of {entry['dtype']}")
    return StoredTensor(file, dtype, shape, data_start + begin, end - begin)


def _check_layout(file: Path, tensors: dict[str, StoredTensor], *, first: int, last: int) -> None:
    position = first
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if stored.offset != position:
            raise LoadError(f"{file}: tensor {name!r} starts at byte {stored.offset}, {position} was expected")
        position += stored.num_bytes
    if position != last:
        raise LoadError(f"{file} is torn: its header describes {position} bytes, the file has {last}; fetch it again")
