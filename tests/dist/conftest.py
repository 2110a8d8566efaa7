from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_session import local_ray
from tests.tiny_checkpoints import make_tiny_wan


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))
