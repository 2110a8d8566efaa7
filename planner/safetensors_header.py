"""One safetensors header, read and checked without its tensors.

The library accepts duplicate names, overlapping aliases and headers that take seconds to parse (safetensors 0.8); here
each of those is a `CheckpointFormatError` that names the file and the offence.
Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian length, JSON, data).
"""

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn

from planner.errors import CheckpointFormatError
from planner.json_text import JsonLimits, parse_object

MAX_HEADER_BYTES = 2 * 2**20
"""Largest header parsed: 8,000 tensors at 250 bytes each; parsing and checking it takes under 100 ms."""
MAX_TENSORS = 8_000
MAX_DIMS = 16
MAX_NAME_LENGTH = 512
MAX_NAME_PARTS = 32
"""Parts between dots; block boundaries are looked for at each (the deepest seen has 17)."""
_LIMITS = JsonLimits(
    num_bytes=MAX_HEADER_BYTES,
    num_objects=MAX_TENSORS + 2,
    num_lists=2 * MAX_TENSORS + 2,
    num_values=16 * MAX_TENSORS,
)

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one element, from safetensors' `Dtype`."""


class TensorEntry(NamedTuple):
    """One tensor as the header describes it.

    `begin` and `end` are byte offsets into the file's data section; `num_elements` is 1 for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A checked header: its tensors tile the file's data section exactly.

    Attributes:
        digest: SHA-256 of the header's bytes.
    """

    tensors: tuple[TensorEntry, ...]
    data_start: int
    data_bytes: int
    digest: bytes


_BY_OFFSET = attrgetter("begin", "end")
ReadRange = Callable[[int, int], bytes]
"""Reads `(offset, length)` bytes of one file."""


def read_header(read_range: ReadRange, *, file: str, file_bytes: int) -> SafetensorsHeader:
    """Reads and checks the header of one file.

    Args:
        read_range: reads bytes of the file; only the header is asked for.
        file: its name in messages.
        file_bytes: size of the whole file, against which the offsets are checked.

    Raises:
        CheckpointFormatError: the file is truncated, malformed, inconsistent or unreasonably large.
    """
    if file_bytes < 8:
        _fail(file, f"it has {file_bytes} bytes, a safetensors file has at least 8: it is truncated or empty")
    prefix = read_range(0, 8)
    if len(prefix) != 8:
        _fail(file, f"reading its first 8 bytes gave {len(prefix)}")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        _fail(
            file,
            f"its header says {length} bytes, at most {MAX_HEADER_BYTES} are read: not a safetensors file, or hostile",
        )
    if 8 + length > file_bytes:
        _fail(
            file, f"its header needs {8 + length} bytes, the file has {file_bytes}: it is truncated, download it again"
        )
    raw = read_range(8, length)
    if len(raw) != length:
        _fail(file, f"its header has {length} bytes, {len(raw)} could be read")
    return parse_header(raw, file=file, data_start=8 + length, data_bytes=file_bytes - 8 - length)


def parse_header(raw: bytes, *, file: str, data_start: int, data_bytes: int) -> SafetensorsHeader:
    """Parses and checks the JSON part of a header. Raises `CheckpointFormatError` like `read_header`."""
    document = parse_object(raw, where=file, what="its header", limits=_LIMITS, duplicates="refused")
    document.pop("__metadata__", None)
    if len(document) > MAX_TENSORS:
        _fail(file, f"it lists {len(document)} tensors, at most {MAX_TENSORS} are allowed")
    tensors = tuple(
        [_plain_entry(name, entry) or _check_entry(name, entry, file=file) for name, entry in document.items()]
    )
    _check_tiling(tensors, data_bytes=data_bytes, file=file)
    return SafetensorsHeader(tensors, data_start, data_bytes, hashlib.sha256(raw).digest())


def _plain_entry(name: str, entry: Any) -> TensorEntry | None:
    """The entry if nothing is wrong with it at a glance, as in all real files; None leaves it to `_check_entry`."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        if type(shape) is not list or len(shape) > MAX_DIMS:
            return None
        num_elements = 1
        for dim in shape:
            if type(dim) is not int or dim < 0:
                return None
            num_elements *= dim
        if (
            type(begin) is int and type(end) is int and 0 <= begin <= end < 2**63 and len(entry) == 3
            and num_elements and num_elements * DTYPE_BITS[dtype] == 8 * (end - begin) and _PLAIN_NAME.match(name)
        ):  # fmt: skip
            return tuple.__new__(TensorEntry, (name, dtype, tuple(shape), begin, end, num_elements))
    except (KeyError, TypeError, ValueError):
        pass
    return None


def _check_entry(name: str, entry: Any, *, file: str) -> TensorEntry:
    """The checked entry. Raises `CheckpointFormatError` with what is wrong."""
    _check_name(name, file=file)
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        has_more = len(entry) != 3
    except (KeyError, TypeError, IndexError):
        has_more = True
    if has_more:
        _fail(file, f"tensor {name!r:.200} must have exactly dtype, shape and data_offsets")
    bits = DTYPE_BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        _fail(file, f"tensor {name!r:.200} has the unknown dtype {_short(dtype)}")
    num_elements = _count_elements(shape) if type(shape) is list else None
    if num_elements is None:
        _fail(file, f"tensor {name!r:.200} has the impossible shape {_short(shape)}")
    begin, end = offsets if type(offsets) is list and len(offsets) == 2 else (-1, -1)
    if type(begin) is not int or type(end) is not int or begin < 0 or end < 0 or begin >= 2**63 or end >= 2**63:
        _fail(file, f"tensor {name!r:.200} has the impossible data_offsets {_short(offsets)}")
    num_bits = num_elements * bits  # Python integers do not wrap around.
    if end < begin or num_bits != 8 * (end - begin):
        needed = num_bits / 8 if num_bits % 8 and num_bits < 2**64 else num_bits // 8
        _fail(
            file,
            f"tensor {name!r:.200} of {dtype} {shape!r:.120} needs {needed} bytes, "
            f"its offsets {begin}..{end} give {end - begin}",
        )
    return TensorEntry(name, dtype, tuple(shape), begin, end, num_elements)


def _count_elements(shape: list[Any]) -> int | None:
    """The product of a shape; None if it is not one."""
    if len(shape) > MAX_DIMS:
        return None
    product = 1
    for dim in shape:
        if type(dim) is not int or not 0 <= dim < 2**63:
            return None
        product *= dim
    return product


_PLAIN_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,40}\.){0,10}[A-Za-z0-9_-]{1,40}\Z")
"""Names that nothing is wrong with at a glance: within every bound of `_check_name`."""


def _check_name(name: str, *, file: str) -> None:
    if (
        not name or len(name) > MAX_NAME_LENGTH or name.count(".") >= MAX_NAME_PARTS
        or not name.isprintable() or "/" in name or "\\" in name or ".." in name
    ):  # fmt: skip
        _fail(file, f"the tensor name {name[:200]!r} is not a parameter's name")


def _check_tiling(tensors: tuple[TensorEntry, ...], *, data_bytes: int, file: str) -> None:
    position = 0
    for tensor in sorted(tensors, key=_BY_OFFSET):
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            _fail(file, f"tensor {tensor.name!r:.200} begins at byte {tensor.begin} where {position} is due: it {what}")
        position = tensor.end
    if position != data_bytes:
        what = "it is truncated, download it again" if position > data_bytes else "bytes follow that no tensor owns"
        _fail(file, f"its tensors need {position} bytes, the file holds {data_bytes}: {what}")


def _short(value: Any) -> str:
    """The value for a message; its start only, so that a huge one costs nothing."""
    return f"{value[: MAX_DIMS + 1] if isinstance(value, list | str) else value!r:.120}"


def _fail(file: str, offence: str) -> NoReturn:
    raise CheckpointFormatError(f"{file}: {offence}")
