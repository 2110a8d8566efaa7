"""A small real checkpoint."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests must not change it."""
    from tests.tiny_checkpoints import make_tiny_wan

    return make_tiny_wan(tmp_path_factory.mktemp("tiny") / "wan")
