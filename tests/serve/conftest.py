"""One real Ray and one real app for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from openai import OpenAI

from deployments.local_serve import find_port, run_app
from deployments.settings import AppSettings
from tests.ray_session import local_ray
from tests.serve.processes import ROOT, Command, heliograph
from tests.unit.deployments.test_http_api import LIMITS

SHAPES = ROOT / "checkpoints" / "shapes"


@dataclass(frozen=True)
class RunningApp:
    """An app that answers."""

    url: str
    handle: Any
    results: Path
    profiles: Path

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """Two ranks at CFG degree 2; on the Ray of this test run, or on one of its own."""
    from ray import serve

    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(local_ray())
        stack.callback(serve.shutdown)
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
        state = tmp_path_factory.mktemp("state")
        settings = AppSettings.model_validate(
            {
                "checkpoint": str(SHAPES),
                "plan": {"device": "cpu", "num_ranks": 2, "cfg_degree": 2, "cpus_per_rank": 1},
                "limits": {**LIMITS, "body_timeout_s": 3.0},
                "start_timeout_s": 150,
                "max_queued_seconds": 1e6,  # tests ask for thousands of steps and take them back
                "jobs": {"lease_s": 3.0},
                "profiles": str(state / "profiles"),
                "state": {"folder": str(state)},
            }
        )
        port = find_port("127.0.0.1", 0)
        handle = run_app(settings, host="127.0.0.1", port=port, logs=logs)
        yield RunningApp(f"http://127.0.0.1:{port}", handle, state / "results", state / "profiles")


@pytest.fixture
def http(app: RunningApp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=60) as client:
        yield client


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """With a path so short that Ray's sockets fit below it."""
    path = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def run_heliograph(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command line; whatever a failed test leaves of it is ended."""
    commands: list[Command] = []

    def run(*arguments: str | Path) -> Command:
        commands.append(heliograph(*arguments, folder=tmp_path / f"run{len(commands)}"))
        return commands[-1]

    yield run
    for command in commands:
        command.kill_all()
