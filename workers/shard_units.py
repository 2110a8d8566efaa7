"""Which parameters of a model are gathered together (a unit), and which every rank keeps whole."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn

from workers.shard_conditions import READ_DIRECTLY, BlockBoundaries, model_class_name

MIN_PARTS_TO_REST = 64
"""What a block has beside its parts is kept whole where the parts weigh more than so many times as much."""


def names_by_parameter(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter (several if tied), in registration order."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def in_order(module: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """The names in the modules' registration order, which is mostly the order that they run in."""
    wanted = set(names)
    return tuple(name for name, _ in module.named_modules() if name in wanted)


def parts_to_cut(module: nn.Module, boundaries: BlockBoundaries, cut_from_bytes: int) -> frozenset[str]:
    """The parts of blocks that are large enough, and of what lies around the blocks."""
    units = ("", *boundaries.names)
    bytes_of: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        bytes_of[_unit_of(name, units)] += parameter.nbytes
    return frozenset(part for part in boundaries.parts if bytes_of[part.rpartition(".")[0]] >= cut_from_bytes)


def parameters_kept_whole(
    module: nn.Module, units: Sequence[str], parts: Collection[str], *, shared: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Vectors and scalars (a few thousandths of a model, but most of its parameters, and norms keep casts of them),
    weights tied across units or otherwise `shared` by them, which would be split, what pipelines read, and what little
    is left of a block that is cut into parts: a gather of its own would only delay the first part's."""
    read_directly = READ_DIRECTLY.get(model_class_name(module), ())
    users: dict[nn.Parameter, set[str]] = {}
    bytes_of: Counter[str] = Counter()
    named = list(module.named_parameters(remove_duplicate=False))
    for name, parameter in named:
        unit = _unit_of(name, units)
        users.setdefault(parameter, set()).add(unit)
        bytes_of[unit] += parameter.nbytes
    in_parts: Counter[str] = Counter()
    for part in parts:
        in_parts[part.rpartition(".")[0]] += bytes_of[part]
    leftovers = {block for block, size in in_parts.items() if block and MIN_PARTS_TO_REST * bytes_of[block] < size}
    return {
        name: parameter
        for name, parameter in named
        if parameter.ndim < 2
        or parameter.numel() == 0
        or len(users[parameter]) > 1
        or name in read_directly
        or any(name.startswith(f"{part}.") for part in shared)
        or _unit_of(name, units) in leftovers
    }


def _unit_of(parameter_name: str, units: Sequence[str]) -> str:
    """The innermost unit that holds the parameter; empty for the root."""
    holders = [name for name in units if parameter_name.startswith(f"{name}.")]
    return max(holders, key=len, default="")


def members(
    names_of: Mapping[nn.Parameter, list[str]], units: Sequence[str], whole: Mapping[str, nn.Parameter]
) -> dict[str, list[nn.Parameter]]:
    """The sharded parameters of each unit, the root first, and it also without any; other empty units are left out."""
    found: dict[str, list[nn.Parameter]] = {name: [] for name in units}
    kept = set(whole.values())
    for parameter, names in names_of.items():
        if parameter not in kept:
            found[_unit_of(names[0], units)].append(parameter)
    return {name: parameters for name, parameters in found.items() if not name or parameters}
