"""Tensors of one component, grouped into blocks and added up by what they weigh once they are placed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.boundaries import BlockRule, find_block, name_templates, resolve_block_rule
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
    names = [tensor.name for tensor in tensors]
    # Thousands of names are a hundred templates: rules are looked up once a template.
    templates = name_templates(names)
    # Files may use names from before a model was restructured: then the containers' last parts are looked for.
    short = tuple(dict.fromkeys(container.rpartition(".")[2] for container in containers))
    declared = ((block_classes, containers), (block_classes, short)) if containers else ()
    rule = resolve_block_rule(class_name, dict.fromkeys(templates), declared=declared)
    bfloat16_parts = {*keep_in_fp32_strict, *(keep_in_fp32 if library == "diffusers" else ())}
    float16_parts = {*keep_in_fp32_strict, *keep_in_fp32}
    traits = {
        template: _Traits(
            block_depth=_block_depth(template, rule),
            kept_float16=not float16_parts.isdisjoint(template.split(".")),
            kept_bfloat16=not bfloat16_parts.isdisjoint(template.split(".")),
        )
        for template in dict.fromkeys(templates)
    }
    present = set(names) if tied else set()
    copies = {name for name, source in tied.items() if source in present}
    rest, blocks = _Sum(), dict[str, _Sum]()
    dtype_bytes: dict[str, int] = {}
    for tensor, template in zip(tensors, templates, strict=True):
        its = traits[template]
        total = rest
        if its.block_depth:
            block = ".".join(tensor.name.split(".", its.block_depth)[: its.block_depth])
            total = blocks.get(block) or blocks.setdefault(block, _Sum())
        total.add(tensor, its, is_copy=tensor.name in copies)
        dtype_bytes[tensor.dtype] = dtype_bytes.get(tensor.dtype, 0) + tensor.end - tensor.begin
    ordered = tuple(Block(name, blocks[name].tally()) for name in sorted(blocks, key=_natural))
    whole = _sum([rest.tally(), *(block.tally for block in ordered)])
    return GroupedWeights(whole, ordered, rest.tally(), rule, dict(sorted(dtype_bytes.items())))


class _Traits(NamedTuple):
    """What all names of one template share.

    Attributes:
        block_depth: parts of the name that name its block; 0 outside the blocks.
        kept_float16: it stays float32 where the plan's dtype is float16.
        kept_bfloat16: it stays float32 where it is bfloat16.
    """

    block_depth: int
    kept_float16: bool
    kept_bfloat16: bool


def _block_depth(template: str, rule: BlockRule | None) -> int:
    block = find_block(template, containers=rule.containers) if rule else None
    return block.count(".") + 1 if block else 0


class _Sum:
    """A `WeightTally` while it grows."""

    __slots__ = ("_cast", "_fixed", "_kept_bfloat16", "_kept_float16", "_parameters", "_payload")

    def __init__(self) -> None:
        self._payload = self._parameters = self._cast = self._kept_float16 = self._kept_bfloat16 = self._fixed = 0

    def add(self, tensor: TensorEntry, traits: _Traits, *, is_copy: bool) -> None:
        num_bytes = tensor.end - tensor.begin
        self._payload += num_bytes
        if is_copy:
            return
        count = tensor.num_elements
        self._parameters += count
        if tensor.dtype not in _CAST:
            self._fixed += num_bytes
            return
        self._cast += count
        if traits.kept_float16:
            self._kept_float16 += count
        if traits.kept_bfloat16:
            self._kept_bfloat16 += count

    def tally(self) -> WeightTally:
        return WeightTally(
            self._payload, self._parameters, self._cast, self._kept_float16, self._kept_bfloat16, self._fixed
        )


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("."))


def _sum(tallies: Iterable[WeightTally]) -> WeightTally:
    total = WeightTally()
    for tally in tallies:
        total = total + tally
    return total
