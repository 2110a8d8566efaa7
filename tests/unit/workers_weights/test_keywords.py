import functools
import gc
import inspect

import pytest
from torch import nn

from workers import keywords
from workers.keywords import accepted_keywords


def plain(hidden, timestep=None, /, *, guidance=None):  # type: ignore[no-untyped-def]
    return hidden, timestep, guidance


def named(hidden, timestep, guidance=None):  # type: ignore[no-untyped-def]
    return hidden, timestep, guidance


def decorated_twice():  # type: ignore[no-untyped-def]
    def decorate(function):  # type: ignore[no-untyped-def]
        @functools.wraps(function)
        def inner(*args, **kwargs):  # type: ignore[no-untyped-def]
            return function(*args, **kwargs)

        return inner

    return decorate(decorate(named))


class Model(nn.Module):
    def forward(self, hidden, timestep):  # type: ignore[no-untyped-def]
        return hidden


class Callable_:  # noqa: N801
    def __call__(self, hidden, mask=None):  # type: ignore[no-untyped-def]
        return hidden


@pytest.mark.parametrize(
    ("target", "names", "any_name"),
    [
        (plain, {"guidance"}, False),
        (named, {"hidden", "timestep", "guidance"}, False),
        (functools.partial(named, 1), {"timestep", "guidance"}, False),
        (functools.partial(functools.partial(named, 1), 2), {"guidance"}, False),
        (functools.partial(named, guidance=3), {"hidden", "timestep", "guidance"}, False),
        (Model(), {"hidden", "timestep"}, False),
        (Model().forward, {"hidden", "timestep"}, False),
        (Model.forward, {"self", "hidden", "timestep"}, False),
        (Callable_(), {"hidden", "mask"}, False),
        (decorated_twice(), {"hidden", "timestep", "guidance"}, False),
        (functools.partial(decorated_twice(), 1), {"timestep", "guidance"}, False),
        (lambda hidden, **_rest: hidden, {"hidden"}, True),
    ],
)
def test_names_accepted(target, names: set[str], any_name: bool) -> None:  # type: ignore[no-untyped-def]
    found = accepted_keywords(target)
    assert (found.names, found.any_name) == (names, any_name)


def test_keep_drops_what_would_be_refused() -> None:
    assert accepted_keywords(named).keep({"timestep": 1, "other": 2}) == {"timestep": 1}
    assert accepted_keywords(lambda **rest: rest).keep({"other": 2}) == {"other": 2}


def test_a_function_is_inspected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inspected: list[object] = []
    signature = inspect.signature

    def counting(function, **options):  # type: ignore[no-untyped-def]
        inspected.append(function)
        return signature(function, **options)

    monkeypatch.setattr(keywords.inspect, "signature", counting)

    def fresh(hidden, timestep):  # type: ignore[no-untyped-def]
        return hidden

    for _ in range(3):
        accepted_keywords(fresh)
        accepted_keywords(functools.partial(fresh, 1))
    assert inspected == [fresh]


def test_a_new_function_at_the_same_address_is_inspected_anew() -> None:
    """Functions are made and dropped until an address is reused; the cache must answer for the living one."""
    namespace: dict[str, object] = {}
    addresses: set[int] = set()
    reused = False
    for number in range(200):
        exec(f"def made(argument_{number}): pass", namespace)
        made = namespace.pop("made")
        reused |= id(made) in addresses
        addresses.add(id(made))
        assert accepted_keywords(made).names == {f"argument_{number}"}  # type: ignore[arg-type]
        del made
        gc.collect(0)
    assert reused


def test_circular_decorators_end() -> None:
    def function(hidden):  # type: ignore[no-untyped-def]
        return hidden

    function.__wrapped__ = function  # type: ignore[attr-defined]
    assert accepted_keywords(function).names == {"hidden"}


def test_replaced_forward_of_an_instance_is_seen() -> None:
    model = Model()
    model.forward = named  # type: ignore[method-assign, assignment]
    assert accepted_keywords(model).names == {"hidden", "timestep", "guidance"}
