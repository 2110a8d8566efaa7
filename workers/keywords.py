"""Which keyword arguments a callable accepts, inspected once a function and not once a step."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class AcceptedKeywords:
    """Names that may be passed by keyword; `any_name` where the callable takes `**kwargs`."""

    names: frozenset[str]
    any_name: bool

    def accepts(self, name: str) -> bool:
        return self.any_name or name in self.names

    def keep(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The given keywords without those that the callable would refuse."""
        return {name: value for name, value in keywords.items() if self.accepts(name)}


# Weak keys, not ids: an entry goes with its function, so that a new function at the same address is inspected anew.
_parameters: WeakKeyDictionary[Callable[..., Any], tuple[inspect.Parameter, ...]] = WeakKeyDictionary()
_answers: WeakKeyDictionary[Callable[..., Any], dict[int, AcceptedKeywords]] = WeakKeyDictionary()


def accepted_keywords(target: Callable[..., Any]) -> AcceptedKeywords:
    """Finds what the callable accepts by keyword, through partials, bound methods, decorators and modules.

    Positions that a partial or a bound method already fills are not accepted by keyword any more.
    """
    function, num_filled = _innermost_function(target)
    try:
        answers = _answers.setdefault(function, {})
    except TypeError:  # no weak references to it: builtins with slots
        return _answer(_inspect(function), num_filled)
    if num_filled not in answers:
        answers[num_filled] = _answer(_parameters_of(function), num_filled)
    return answers[num_filled]


def _parameters_of(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    if function not in _parameters:
        _parameters[function] = _inspect(function)
    return _parameters[function]


def _inspect(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function, follow_wrapped=False).parameters.values())


def _innermost_function(target: Callable[..., Any]) -> tuple[Callable[..., Any], int]:
    """The function that is finally called, and how many of its leading positions are filled already."""
    num_filled = 0
    seen: list[object] = []
    while not any(target is earlier for earlier in seen):
        seen.append(target)
        if isinstance(target, functools.partial):
            num_filled += len(target.args)
            target = target.func
        elif inspect.ismethod(target):
            num_filled += 1
            target = target.__func__
        elif isinstance(target, nn.Module):
            target = target.forward
        elif not hasattr(target, "__signature__") and callable(getattr(target, "__wrapped__", None)):
            target = target.__wrapped__  # type: ignore[attr-defined]
        elif not inspect.isroutine(target) and not inspect.isclass(target):
            target = getattr(target, "__call__")  # noqa: B004, B009 - an instance of a class with __call__
    return target, num_filled


def _answer(parameters: tuple[inspect.Parameter, ...], num_filled: int) -> AcceptedKeywords:
    names: list[str] = []
    any_name = False
    for parameter in parameters:
        if num_filled and parameter.kind in _POSITIONAL_KINDS:
            num_filled -= 1
        elif parameter.kind in _KEYWORD_KINDS:
            names.append(parameter.name)
        any_name |= parameter.kind is inspect.Parameter.VAR_KEYWORD
    return AcceptedKeywords(frozenset(names), any_name)
