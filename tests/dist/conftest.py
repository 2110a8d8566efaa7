from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planner.plan import Plan
from tests.ray_session import local_ray
from tests.tiny_checkpoints import make_tiny_wan
from workers.group import WorkerGroup


@pytest.fixture(scope="session")
def node_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of the session for what ranks keep on their node: fetched checkpoints, compiled code."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HELIOGRAPH_CHECKPOINT_CACHE", str(folder / "checkpoints"))
        environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
        yield folder


@pytest.fixture(scope="session")
def ray_cluster(node_caches: Path) -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))


@pytest.fixture
def start_group() -> Iterator[Callable[[Plan], WorkerGroup]]:
    groups: list[WorkerGroup] = []

    def start(plan: Plan) -> WorkerGroup:
        groups.append(WorkerGroup.start(plan, timeout_s=180))
        return groups[-1]

    yield start
    for group in groups:
        group.shutdown()
