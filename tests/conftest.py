"""Rules for all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

_UNIT = Path(__file__).parent / "unit"


@pytest.fixture(autouse=True)
def _no_ray_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/unit` starts no Ray: what needs one belongs to `tests/dist` or `tests/serve`."""
    if _UNIT in request.path.parents:
        import ray

        monkeypatch.setattr(ray, "init", _refuse)


@pytest.fixture(autouse=True)
def _no_dispatch_mode_left() -> Iterator[None]:
    """A mode left on PyTorch's stack slows every later operation down and keeps code from being compiled."""
    yield
    if "torch" in sys.modules:
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

        left = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack()]
        for _ in left:
            _pop_mode()
        assert left == []


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a unit test must not start Ray")
