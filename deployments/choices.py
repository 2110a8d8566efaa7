"""A user's words for sizes and residency, as they stand on the command line and in settings."""

from planner.plan import Residency, ResidencyChoice, ShardUnit


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of `WIDTHxHEIGHT`.

    Raises:
        ValueError: it is something else, or a side is zero.
    """
    width, separator, height = text.lower().partition("x")
    if not (separator and _is_count(width) and _is_count(height)):
        raise ValueError(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, e.g. 512x512")
    return int(width), int(height)


def parse_residency(text: str) -> ResidencyChoice:
    """A residency with what it may take: `offload`, `layerwise:12` (resident blocks), `sharded:parts`.

    Raises:
        ValueError: unknown kind, or a count that is none.
    """
    kind, separator, count = text.partition(":")
    residency = parse_residency_kind(kind)
    if not separator:
        return ResidencyChoice(residency=residency)
    if residency is Residency.SHARDED:
        if count not in set(ShardUnit):
            raise ValueError(f"{text!r}: sharded takes {' or '.join(ShardUnit)}, e.g. sharded:{ShardUnit.PARTS}")
        return ResidencyChoice(residency=residency, shard_by=ShardUnit(count))
    if residency is not Residency.LAYERWISE or not count.isascii() or not count.isdigit():
        raise ValueError(f"{text!r}: only layerwise takes a number of resident blocks, e.g. layerwise:12")
    return ResidencyChoice(residency=residency, num_resident_blocks=int(count))


def parse_residency_kind(text: str) -> Residency:
    """One of the residencies by name.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return Residency(text)
    except ValueError:
        raise ValueError(f"{text!r} is no residency: choose one of {', '.join(Residency)}") from None


def split_assignment(text: str) -> tuple[str, str]:
    """The two sides of `COMPONENT=KIND`.

    Raises:
        ValueError: a side is missing.
    """
    name, _, value = text.partition("=")
    if not name or not value:
        raise ValueError(f"{text!r}: write COMPONENT=KIND, e.g. text_encoder=offload")
    return name, value


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6 and int(text) > 0
