"""Tensors of one component, grouped into blocks and added up by what they weigh once they are placed."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.boundaries import CUT_INTO_PARTS, BlockRule, find_block, name_templates, resolve_block_rule
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
        num_modulation: elements of layers that see one vector a call (the timestep's), not every token.
    """

    payload_bytes: int = 0
    num_parameters: int = 0
    num_cast: int = 0
    num_kept_float16: int = 0
    num_kept_bfloat16: int = 0
    fixed_bytes: int = 0
    num_modulation: int = 0

    def __add__(self, other: "WeightTally") -> "WeightTally":
        return WeightTally(
            self.payload_bytes + other.payload_bytes,
            self.num_parameters + other.num_parameters,
            self.num_cast + other.num_cast,
            self.num_kept_float16 + other.num_kept_float16,
            self.num_kept_bfloat16 + other.num_kept_bfloat16,
            self.fixed_bytes + other.fixed_bytes,
            self.num_modulation + other.num_modulation,
        )

    def placed_bytes(self, dtype: str) -> int:
        """Bytes once loaded with `dtype` (`float32`, `bfloat16` or `float16`), in host or device memory."""
        kept = {"float16": self.num_kept_float16, "bfloat16": self.num_kept_bfloat16}.get(dtype, 0)
        return (self.num_cast - kept) * DTYPE_BYTES[dtype] + kept * 4 + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its qualified name, e.g. `blocks.3`, its weights, and its largest child's share of them (1 where the
    model's blocks cannot be cut)."""

    name: str
    tally: WeightTally
    largest_part_share: float = 1.0


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """A component's tensors in blocks; `tally` is the sum of the blocks and `rest`."""

    tally: WeightTally
    blocks: tuple[Block, ...]
    rest: WeightTally
    rule: BlockRule | None
    dtype_bytes: Mapping[str, int]
    rest_part_share: float


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
            is_modulation=_is_modulation(template),
        )
        for template in dict.fromkeys(templates)
    }
    present = set(names) if tied else set()
    copies = {name for name, source in tied.items() if source in present}
    rest, blocks = _add_up(tensors, [traits[template] for template in templates], copies=copies)
    depths = [traits[template].block_depth for template in templates]
    shares = _part_shares(tensors, depths) if class_name in CUT_INTO_PARTS else {}
    ordered = tuple(Block(name, blocks[name], shares.get(name, 1.0)) for name in sorted(blocks, key=_natural))
    whole = _sum([rest, *blocks.values()])
    return GroupedWeights(whole, ordered, rest, rule, _dtype_bytes(tensors), shares.get("", 1.0))


def _part_shares(tensors: Sequence[TensorEntry], depths: Sequence[int]) -> dict[str, float]:
    """Of each block, and of what lies outside (empty name), the share of the largest child in its elements."""
    children: dict[tuple[str, str], int] = defaultdict(int)
    whole: dict[str, int] = defaultdict(int)
    for tensor, depth in zip(tensors, depths, strict=True):
        *block, child = tensor.name.split(".", depth + 1)[: depth + 1]
        children[".".join(block), child] += tensor.num_elements
        whole[".".join(block)] += tensor.num_elements
    largest: dict[str, int] = defaultdict(int)
    for (name, _), count in children.items():
        largest[name] = max(largest[name], count)
    return {name: largest[name] / max(1, count) for name, count in whole.items()}


def _dtype_bytes(tensors: Sequence[TensorEntry]) -> dict[str, int]:
    return {
        dtype: sum([tensor.end - tensor.begin for tensor in tensors if tensor.dtype == dtype])
        for dtype in sorted({tensor.dtype for tensor in tensors})
    }


class _Traits(NamedTuple):
    """What all names of one template share.

    Attributes:
        block_depth: parts of the name that name its block; 0 outside the blocks.
        kept_float16: it stays float32 where the plan's dtype is float16.
        kept_bfloat16: it stays float32 where it is bfloat16.
        is_modulation: it is of a layer that turns the timestep's embedding into scales, shifts and gates.
    """

    block_depth: int
    kept_float16: bool
    kept_bfloat16: bool
    is_modulation: bool


def _block_depth(template: str, rule: BlockRule | None) -> int:
    block = find_block(template, containers=rule.containers) if rule else None
    return block.count(".") + 1 if block else 0


def _is_modulation(template: str) -> bool:
    """diffusers' names: `norm1.linear`, `norm1_context.linear`, `img_mod.1`, `adaLN_modulation.0`."""
    *_, owner, _, _ = ("", "", *template.split("."))
    return owner.startswith("norm") or owner.endswith(("mod", "modulation"))


def _add_up(
    tensors: Sequence[TensorEntry], traits: Sequence[_Traits], *, copies: Collection[str]
) -> tuple[WeightTally, dict[str, WeightTally]]:
    """What lies outside the blocks, and each block; `copies` are tied weights, whose bytes alone count."""
    # Sums in the order of `WeightTally`'s fields, and in one loop: it runs for every tensor.
    rest, blocks = [0] * 7, dict[str, list[int]]()
    for (name, dtype, _, begin, end, count), its in zip(tensors, traits, strict=True):
        depth, kept_float16, kept_bfloat16, is_modulation = its
        sums = rest
        if depth:
            block = ".".join(name.split(".", depth)[:depth])
            sums = blocks.get(block) or blocks.setdefault(block, [0] * 7)
        sums[0] += end - begin
        if name in copies:
            continue
        sums[1] += count
        if is_modulation:
            sums[6] += count
        if dtype not in _CAST:
            sums[5] += end - begin
            continue
        sums[2] += count
        if kept_float16:
            sums[3] += count
        if kept_bfloat16:
            sums[4] += count
    return WeightTally(*rest), {name: WeightTally(*sums) for name, sums in blocks.items()}


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((1, int(part), "") if part.isascii() and part.isdigit() else (0, 0, part) for part in name.split("."))


def _sum(tallies: Iterable[WeightTally]) -> WeightTally:
    total = WeightTally()
    for tally in tallies:
        total = total + tally
    return total
