"""Where a model is cut into blocks: predicates `(qualified_name, module) -> bool`, and the order they are asked in.

Sharding and streaming cut at the same places. The result says which rule decided, for the plan, the log and the table
in docs/weights.md.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from planner.boundaries import COMMON_CONTAINERS, CUT_INTO_PARTS, EXPLICIT_CONTAINERS, is_numbered_entry_of_any
from workers.errors import LoadError

ShardCondition = Callable[[str, nn.Module], bool]

# Parts of a block that the model also calls past the block: gathered on their own, and never streamed.
BORROWED_MODULES: dict[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": ("transformer_blocks.0.norm1.emb",),
    "Transformer2DModel": ("transformer_blocks.0.norm1.emb",),
}

# Parameters that a pipeline reads past the model's call, where nothing gathers them: every rank keeps them whole.
READ_DIRECTLY: dict[str, tuple[str, ...]] = {
    "PriorTransformer": ("clip_mean", "clip_std"),  # post_process_latents, after the last step
}

_WRAPPER_PARTS = frozenset({"_fsdp_wrapped_module", "_orig_mod"})


class BoundaryRule(StrEnum):
    """Which step of the resolution order decided."""

    EXPLICIT = "explicit"
    CLASSES = "classes"
    CONTAINERS = "containers"


@dataclass(frozen=True, slots=True)
class BlockBoundaries:
    """The blocks of one model, in registration order, and why these.

    Attributes:
        rule: the step of the resolution order that decided.
        detail: the containers or classes that matched.
        names: qualified names of the blocks; an inner block may lie inside an outer one (UNets).
        borrowed: qualified names of parts of blocks that the model also calls past the block.
        parts: qualified names of the children of blocks, and of the model, where sharding may cut there: each one's
            weights are used by its own call only.
    """

    rule: BoundaryRule
    detail: tuple[str, ...]
    names: tuple[str, ...]
    borrowed: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}: {', '.join(self.detail)}"

    def outermost(self) -> tuple[str, ...]:
        """The blocks that lie in no other block."""
        taken = set(self.names)
        return tuple(name for name in self.names if not any(parent in taken for parent in _parents(name)))


def numbered_entry_of(*containers: str) -> ShardCondition:
    """True for direct numbered entries of any of the containers: `blocks.0`, not `blocks.0.attn`.

    A container may be dotted (`encoder.block`), and may itself lie anywhere in the model.
    """
    return lambda name, _module: is_numbered_entry_of_any(containers, clean_name(name))


def block_of_class(*class_names: str) -> ShardCondition:
    """True for modules of one of the classes (by name) that are numbered entries of some container.

    Class lists name patch embeddings and norms too; those are reached by attribute from outside their own call, where
    nothing would have gathered them, and hold little.
    """
    wanted = frozenset(class_names)
    return lambda name, module: name.rpartition(".")[2].isdigit() and wanted & _original_class_names(module) != set()


def resolve_boundaries(
    model: nn.Module,
    *,
    explicit: Mapping[str, Iterable[str]] = EXPLICIT_CONTAINERS,
    containers: Iterable[str] = COMMON_CONTAINERS,
) -> BlockBoundaries:
    """Finds the model's blocks: explicit containers of this model, then its block classes, then the usual containers.

    Raises:
        LoadError: no rule matches anything.
    """
    class_name = model_class_name(model)
    candidates: list[tuple[BoundaryRule, tuple[str, ...], ShardCondition]] = []
    if class_name in explicit:
        named = tuple(explicit[class_name])
        candidates.append((BoundaryRule.EXPLICIT, named, numbered_entry_of(*named)))
    if classes := block_class_names(model):
        candidates.append((BoundaryRule.CLASSES, classes, block_of_class(*classes)))
    common = tuple(containers)
    candidates.append((BoundaryRule.CONTAINERS, common, numbered_entry_of(*common)))
    for rule, detail, condition in candidates:
        if names := matching_names(model, condition):
            parts = parts_of(model, names) if class_name in CUT_INTO_PARTS else ()
            return BlockBoundaries(rule, _used(rule, detail, model, names), names, borrowed_modules(model), parts)
    raise LoadError(
        f"{class_name} has no blocks to cut at: no explicit containers are stated for it, none of its block classes "
        f"{list(block_class_names(model))} is a numbered entry, and none of the containers {list(common)} is in it. "
        f"State its containers in EXPLICIT_CONTAINERS, or keep it whole (resident or offload)."
    )


def borrowed_modules(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of `BORROWED_MODULES` that this model has."""
    present = dict(model.named_modules())
    return tuple(name for name in BORROWED_MODULES.get(model_class_name(model), ()) if name in present)


def parts_of(model: nn.Module, block_names: Sequence[str]) -> tuple[str, ...]:
    """Qualified names of the children of blocks, and of the model, that hold matrices of their own and no block."""
    blocks = set(block_names)
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    holders = {parent for name in blocks for parent in _parents(name)}
    children = {
        f"{owner}.{name}" if owner else name: child
        for owner in ("", *block_names)
        for name, child in model.get_submodule(owner).named_children()
    }
    return tuple(
        name
        for name, child in children.items()
        if name not in blocks | holders and _is_called(child) and _has_own_matrix(child, users)
    )


def _is_called(module: nn.Module) -> bool:
    """Containers are not: what is in them is."""
    return not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)


def _has_own_matrix(module: nn.Module, users: Mapping[int, int]) -> bool:
    """Whether it has a matrix, and nothing that is tied to a parameter elsewhere."""
    inside = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    has_matrix = any(parameter.ndim > 1 for parameter in module.parameters())
    return has_matrix and all(users[key] == count for key, count in inside.items())


def matching_names(model: nn.Module, condition: ShardCondition) -> tuple[str, ...]:
    """Qualified names of the modules with parameters that meet the condition, in registration order."""
    return tuple(
        name
        for name, module in model.named_modules()
        if name and condition(name, module) and next(module.parameters(), None) is not None
    )


def block_class_names(model: nn.Module) -> tuple[str, ...]:
    """Class names from `_repeated_blocks` and `_no_split_modules`, in this order, each once."""
    names: list[str] = []
    for attribute in ("_repeated_blocks", "_no_split_modules"):
        listed = getattr(model, attribute, None) or ()
        names += sorted(listed) if isinstance(listed, (set, frozenset)) else list(listed)
    return tuple(dict.fromkeys(names))


def clean_name(name: str) -> str:
    """The qualified name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def model_class_name(model: nn.Module) -> str:
    """The model's class name as its author wrote it, also under FSDP2, which renames classes."""
    return next(cls.__name__ for cls in type(model).__mro__ if not cls.__name__.startswith("FSDP"))


def _original_class_names(module: nn.Module) -> set[str]:
    return {type(module).__name__, model_class_name(module)}


def _parents(name: str) -> Iterable[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _used(rule: BoundaryRule, detail: tuple[str, ...], model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    if rule is BoundaryRule.CLASSES:
        present: set[str] = set()
        for name in names:
            present |= _original_class_names(model.get_submodule(name))
        return tuple(entry for entry in detail if entry in present)
    return tuple(entry for entry in detail if any(numbered_entry_of(entry)(name, model) for name in names))
