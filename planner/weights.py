"""Tensors of one component, grouped into blocks and added up by what they weigh once they are placed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner.boundaries import BlockRule, find_block, resolve_block_rule
from planner.safetensors_header import TensorEntry

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CAST = frozenset({"F64", "F32", "BF16", "F16"})


@dataclass(frozen=True, slots=True)
class WeightTally:
    """What some tensors amount to.

    Attributes:
        payload_bytes: bytes in the files.
        num_parameters: elements, tied weights once.
        num_cast: elements that take the plan's dtype.
        num_kept_float16: elements that stay float32 where the plan's dtype is float16.
        num_kept_bfloat16: elements that stay float32 where it is bfloat16.
        fixed_bytes: bytes of tensors that keep their dtype (integers, 8-bit floats).
    """

    payload_bytes: int = 0
    num_parameters: int = 0
    num_cast: int = 0
    num_kept_float16: int = 0
    num_kept_bfloat16: int = 0
    fixed_bytes: int = 0

    def __add__(self, other: "WeightTally") -> "WeightTally":
        return WeightTally(
            self.payload_bytes + other.payload_bytes,
            self.num_parameters + other.num_parameters,
            self.num_cast + other.num_cast,
            self.num_kept_float16 + other.num_kept_float16,
            self.num_kept_bfloat16 + other.num_kept_bfloat16,
            self.fixed_bytes + other.fixed_bytes,
        )

    def placed_bytes(self, dtype: str) -> int:
        """Bytes once loaded with `dtype` (`float32`, `bfloat16` or `float16`), in host or device memory."""
        kept = {"float16": self.num_kept_float16, "bfloat16": self.num_kept_bfloat16}.get(dtype, 0)
        return (self.num_cast - kept) * DTYPE_BYTES[dtype] + kept * 4 + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its qualified name, e.g. `blocks.3`, and its weights."""

    name: str
    tally: WeightTally


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """A component's tensors in blocks; `tally` is the sum of the blocks and `rest`."""

    tally: WeightTally
    blocks: tuple[Block, ...]
    rest: WeightTally
    rule: BlockRule | None
    dtype_bytes: Mapping[str, int]


def group_weights(
    tensors: Sequence[TensorEntry],
    *,
    class_name: str,
    library: str,
    keep_in_fp32: Sequence[str],
    keep_in_fp32_strict: Sequence[str],
    block_classes: Sequence[str],
    containers: Sequence[str],
    tied: Mapping[str, str],
) -> GroupedWeights:
    """Adds tensors up by block.

    What stays in float32: diffusers' list under both 16-bit dtypes (`ModelMixin.from_pretrained`, 0.42), transformers'
    plain list under float16 only, its strict list under both (`PreTrainedModel._create_dtype_plan`, 5.23).
    """
    names = {tensor.name for tensor in tensors}
    # Files may use names from before a model was restructured: then the containers' last parts are looked for.
    short = tuple(dict.fromkeys(container.rpartition(".")[2] for container in containers))
    declared = ((block_classes, containers), (block_classes, short)) if containers else ()
    rule = resolve_block_rule(class_name, names, declared=declared)
    bfloat16_parts = frozenset(keep_in_fp32_strict) | (
        frozenset(keep_in_fp32) if library == "diffusers" else frozenset()
    )
    float16_parts = frozenset(keep_in_fp32) | frozenset(keep_in_fp32_strict)
    blocks: dict[str, WeightTally] = {}
    rest = WeightTally()
    dtype_bytes: dict[str, int] = {}
    for tensor in tensors:
        dtype_bytes[tensor.dtype] = dtype_bytes.get(tensor.dtype, 0) + tensor.num_bytes
        single = _tally(tensor, names=names, tied=tied, float16_parts=float16_parts, bfloat16_parts=bfloat16_parts)
        block = find_block(tensor.name, containers=rule.containers) if rule else None
        if block is None:
            rest = rest + single
        else:
            blocks[block] = blocks.get(block, WeightTally()) + single
    ordered = tuple(Block(name, blocks[name]) for name in sorted(blocks, key=_natural))
    return GroupedWeights(_sum([rest, *blocks.values()]), ordered, rest, rule, dict(sorted(dtype_bytes.items())))


def _tally(
    tensor: TensorEntry,
    *,
    names: set[str],
    tied: Mapping[str, str],
    float16_parts: frozenset[str],
    bfloat16_parts: frozenset[str],
) -> WeightTally:
    if tied.get(tensor.name) in names:
        return WeightTally(payload_bytes=tensor.num_bytes)
    count = tensor.num_elements
    if tensor.dtype not in _CAST:
        return WeightTally(tensor.num_bytes, count, 0, 0, 0, tensor.num_bytes)
    parts = tensor.name.split(".")
    return WeightTally(
        tensor.num_bytes,
        count,
        count,
        count if not float16_parts.isdisjoint(parts) else 0,
        count if not bfloat16_parts.isdisjoint(parts) else 0,
        0,
    )


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("."))


def _sum(tallies: Iterable[WeightTally]) -> WeightTally:
    total = WeightTally()
    for tally in tallies:
        total = total + tally
    return total
