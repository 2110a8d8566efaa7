"""Block boundaries of a model, found from qualified names alone.

A block is the unit that is sharded and streamed. The resolution order is fixed: containers stated explicitly for the
model, then the classes in `_repeated_blocks` (else `_no_split_modules`), then the common numbered containers.
Predicates here see strings only, so that the planner (parameter names) and the workers (modules) use the same ones.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

COMMON_CONTAINERS: tuple[str, ...] = (
    "blocks",
    "layers",
    "double_blocks",
    "single_blocks",
    "refiner_blocks",
    "noise_refiner",
    "context_refiner",
    "transformer_blocks",
    "single_transformer_blocks",
    "encoder.block",
)
"""Containers of numbered blocks seen in the field (REQUIREMENTS 1)."""

EXPLICIT_CONTAINERS: dict[str, tuple[str, ...]] = {
    "T5EncoderModel": ("encoder.block",),
    "UMT5EncoderModel": ("encoder.block",),
    # Their blocks are named neither by class attributes nor, completely, by the common containers.
    "HiDreamImageTransformer2DModel": ("double_stream_blocks", "single_stream_blocks"),
    "LatteTransformer3DModel": ("transformer_blocks", "temporal_transformer_blocks"),
    "T5FilmDecoder": ("decoders",),
}
"""Containers stated for a model class; they win over everything else, in the planner and in the workers."""

CUT_FROM_BYTES = 400 << 20
"""A block at least so large is sharded child by child, where its model allows it, and so is what lies around blocks:
two units are whole on a rank at once, and smaller blocks save too little for the further calls."""

CUT_INTO_PARTS: frozenset[str] = frozenset(
    {
        "AuraFlowTransformer2DModel",
        "BriaFiboTransformer2DModel",
        "BriaTransformer2DModel",
        "ChromaTransformer2DModel",
        "ChronoEditTransformer3DModel",
        "CogVideoXTransformer3DModel",
        "CogView4Transformer2DModel",
        "CosmosTransformer3DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "Gemma2Model",
        "GlmImageTransformer2DModel",
        "HiDreamImageTransformer2DModel",
        "HunyuanImageTransformer2DModel",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideoFramepackTransformer3DModel",
        "HunyuanVideoTransformer3DModel",
        "Kandinsky5Transformer3DModel",
        "LTX2VideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "LlamaModel",
        "LongCatImageTransformer2DModel",
        "Lumina2Transformer2DModel",
        "MochiTransformer3DModel",
        "MotifVideoTransformer3DModel",
        "OmniGenTransformer2DModel",
        "OvisImageTransformer2DModel",
        "PixArtTransformer2DModel",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3Model",
        "QwenImage21Transformer2DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "SanaVideoTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "WanAnimateTransformer3DModel",
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "ZImageTransformer2DModel",
    }
)
"""Models that allow it: no child of a block or of the model has weights that are used but by its own call. Each was run
so (`tests/dist/weights`); Kandinsky6's and LuminaNext's blocks read their children's weights, other models are cut at
blocks only."""


def is_numbered_entry_of(container: str, qualified_name: str) -> bool:
    """Tells whether a module is a direct numbered entry of `container`.

    `transformer_blocks.0` is one of `transformer_blocks`; `transformer_blocks.0.attn` and
    `transformer_blocks.0.ff.net.0` are not. A container may be dotted (`encoder.block`), and may lie
    below other modules. `*` in a container stands for a number (`down_blocks.*.attentions`).
    """
    parts = qualified_name.split(".")
    return _is_number(parts[-1]) and _matches(container.split("."), parts, len(parts) - 1)


def is_numbered_entry_of_any(containers: Iterable[str], qualified_name: str) -> bool:
    """Tells whether a module is a direct numbered entry of one of `containers`."""
    return any(is_numbered_entry_of(container, qualified_name) for container in containers)


def find_block(parameter_name: str, *, containers: Sequence[str]) -> str | None:
    """The outermost block that a parameter lies in, e.g. `blocks.3` for `blocks.3.attn.to_q.weight`; None outside."""
    ends = _by_last_part(tuple(containers))
    parts = parameter_name.split(".")
    for position in range(1, len(parts) - 1):
        if _is_number(parts[position]) and _containers_before(parts, position, ends):
            return ".".join(parts[: position + 1])
    return None


_INNER_NUMBERS = re.compile(r"\.[0-9]+(?=\.)")


def name_templates(names: Sequence[str]) -> list[str]:
    """The names with each number inside them replaced by 0: `blocks.0.norm.weight` for `blocks.17.norm.weight`.

    Rules tell names apart by everything but their numbers, so what holds for a template holds for all its names.
    """
    return _INNER_NUMBERS.sub(".0", "\n".join(names)).split("\n") if names else []


@cache
def _by_last_part(containers: tuple[str, ...]) -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """The containers' parts by their last one, so that a name is split once and looked up once a number in it."""
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for container in dict.fromkeys(containers):
        pattern = tuple(container.split("."))
        found[pattern[-1]] = (*found.get(pattern[-1], ()), pattern)
    return found


def _containers_before(
    parts: Sequence[str], position: int, ends: Mapping[str, tuple[tuple[str, ...], ...]]
) -> tuple[str, ...]:
    """The containers whose numbered entry ends at `position`, as they were stated."""
    patterns = ends.get(parts[position - 1], ())
    if "*" in ends and _is_number(parts[position - 1]):
        patterns = (*patterns, *ends["*"])
    if not patterns:
        return ()
    return tuple(".".join(pattern) for pattern in patterns if _matches(pattern, parts, position))


def _matches(pattern: Sequence[str], parts: Sequence[str], position: int) -> bool:
    if len(pattern) > position:
        return False
    for want, part in zip(pattern, parts[position - len(pattern) : position], strict=True):
        if part != want and not (want == "*" and _is_number(part)):
            return False
    return True


@dataclass(frozen=True, slots=True)
class BlockRule:
    """Which rule decided the block boundaries of a model.

    Attributes:
        source: the step of the resolution order that matched.
        containers: containers (with `*` for numbers) whose numbered entries are the blocks.
        class_names: the declared classes, if they decided.
    """

    source: Literal["explicit", "classes", "containers"]
    containers: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the plan and the log."""
        where = ", ".join(self.containers)
        if self.source == "explicit":
            return f"stated for the model: {where}"
        if self.source == "classes":
            return f"declared classes {', '.join(self.class_names)}: {where}"
        return f"numbered entries of {where}"


def resolve_block_rule(
    class_name: str,
    parameter_names: Iterable[str],
    *,
    declared: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
) -> BlockRule | None:
    """Finds the rule that splits a model into blocks.

    Args:
        class_name: the model's class.
        parameter_names: qualified names of its parameters.
        declared: `(class names, containers that hold them)`, in order of preference; from the generated tables.

    Returns:
        The first rule that matches a parameter, with the containers that do; None if nothing matches.
    """
    names = tuple(parameter_names)
    explicit = _present(EXPLICIT_CONTAINERS.get(class_name, ()), names)
    if explicit:
        return BlockRule("explicit", explicit)
    for class_names, containers in declared:
        present = _present(containers, names)
        if present:
            return BlockRule("classes", present, tuple(class_names))
    common = _present(COMMON_CONTAINERS, names)
    return BlockRule("containers", common) if common else None


def _present(containers: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The containers that some parameter lies in, in the order given; one pass over the names."""
    ends = _by_last_part(tuple(containers))
    if not ends:
        return ()
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        for position in range(1, len(parts) - 1):
            if _is_number(parts[position]):
                found.update(_containers_before(parts, position, ends))
    return tuple(container for container in containers if container in found)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()
