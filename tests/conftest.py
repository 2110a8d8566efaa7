"""Rules for all tests."""

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


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a unit test must not start Ray")
