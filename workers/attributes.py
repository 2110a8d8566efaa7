"""Attributes of the model inside its wrappers (FSDP, `torch.compile`, data parallel, adapters)."""

from typing import Any

WRAPPER_ATTRIBUTES = ("_fsdp_wrapped_module", "module", "_orig_mod")


def find_attribute(wrapped: object, name: str, default: Any = None) -> Any:
    """Looks the attribute up on the object itself, then on what it wraps, nearest first.

    `None` counts as not found, since wrappers forward absent things as `None`. Wrappers that wrap each other in a
    circle end the search.

    Returns:
        The first value that is not `None`, or `default`.
    """
    pending = [wrapped]
    seen: list[object] = []
    while pending:
        current = pending.pop(0)
        if any(current is earlier for earlier in seen):
            continue
        seen.append(current)
        value = getattr(current, name, None)
        if value is not None:
            return value
        pending += [inner for inner in _inner_objects(current) if inner is not None]
    return default


def innermost(wrapped: object) -> object:
    """The object inside all wrappers; the object itself where it wraps nothing."""
    seen: list[object] = []
    current = wrapped
    while not any(current is earlier for earlier in seen):
        seen.append(current)
        current = next((inner for inner in _inner_objects(current) if inner is not None), current)
    return seen[-1]


def _inner_objects(wrapper: object) -> list[object]:
    return [getattr(wrapper, attribute, None) for attribute in WRAPPER_ATTRIBUTES]
