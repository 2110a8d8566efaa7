"""A service to do harm to: a Ray of its own, the embedded checkpoint on two CPU ranks, two ingress replicas."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from benchmarks.chaos_client import Ask, LedgerClient
from benchmarks.chaos_processes import SLOW_POLL_S, count_processes, wait_until
from deployments.config_check import IMPORT_PATH
from deployments.local_ray import local_ray
from deployments.local_serve import APP_NAME, find_port
from deployments.settings import AppSettings

SHAPES = Path(__file__).parent.parent / "checkpoints" / "shapes"
LONG = Ask(seed=11, num_steps=150)
SHORT = (Ask(seed=12, num_steps=3), Ask(seed=13, num_steps=2))
MIDDLE = Ask(seed=14, num_steps=20)
MAX_QUEUED = 24
HOST = "127.0.0.1"
_HEALTHY_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Site:
    """A running service.

    Attributes:
        client: asks it.
        settings: what it was started with.
        start_s: from the deploy to the first healthy answer.
        processes: how many of each kind there are when all is well.
        extra: what only some sites have: worker nodes, a database.
    """

    client: LedgerClient
    settings: AppSettings
    start_s: float
    processes: dict[str, int] = field(default_factory=dict)
    extra: Any = None

    def is_back(self) -> bool:
        """Whether every process is there again and requests would be answered; they may still queue up."""
        return count_processes() == self.processes and self.client.health()[0] == 200

    def is_whole(self) -> bool:
        """Whether every process is there again and all ranks of a group answer."""
        return count_processes() == self.processes and self.client.health()[1] == "ok"

    def wait_until_whole(self) -> float:
        """Waits for it; the seconds that it took."""
        return wait_until(self.is_whole, "the service as it was", timeout_s=_HEALTHY_TIMEOUT_S, poll_s=SLOW_POLL_S)


def make_settings(folder: Path, **values: Any) -> AppSettings:
    """The app's settings, with quick leases and deadlines that suit a tiny model."""
    return AppSettings.model_validate(
        {
            "checkpoint": str(SHAPES),
            "plan": {"device": "cpu", "num_ranks": 2, "cfg_degree": 2, "cpus_per_rank": 1},
            "limits": {"max_steps": 1000, "max_pixels": 2**60, "max_frames": 2**20},
            "max_queued_requests": MAX_QUEUED,
            "step_deadline_floor_s": 10.0,
            "request_timeout_s": 280.0,
            "jobs": {"lease_s": 3.0},
            "state": {"folder": str(folder)},
            **values,
        }
    )


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Starts Ray and the app; both are gone afterwards."""
    with local_ray(num_cpus=8, num_gpus=0):
        settings = make_settings(folder)
        port, begin = find_port(HOST, 0), time.monotonic()
        serve.start(http_options={"host": HOST, "port": port, "location": "HeadOnly"})
        deploy(settings)
        with site_at(port, settings, begin) as site:
            yield site
        serve.shutdown()  # not after an error or an interrupt: it would wait for requests, and Ray ends anyway


def deploy(settings: AppSettings, *, app_name: str = APP_NAME, route_prefix: str = "/") -> None:
    """Hands the app to Serve as `serve deploy` does, and waits until Serve has planned it.

    Raises:
        RuntimeError: Serve says that it failed.
    """
    config = {
        "name": app_name,
        "route_prefix": route_prefix,
        "import_path": IMPORT_PATH,
        "args": settings.model_dump(mode="json", exclude_unset=True),
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [config]}))
    wait_until(
        lambda: bool(status_of(app_name).deployments), "a plan", timeout_s=_HEALTHY_TIMEOUT_S, poll_s=SLOW_POLL_S
    )


def status_of(app_name: str = APP_NAME) -> Any:
    """What Serve says of an app.

    Raises:
        RuntimeError: its deployment failed.
    """
    status = serve.status().applications[app_name]
    if status.status == "DEPLOY_FAILED":
        raise RuntimeError(status.message)
    return status


@contextmanager
def site_at(port: int, settings: AppSettings, begin: float, *, extra: Any = None) -> Iterator[Site]:
    """The site on a port once it is healthy, with all pictures learnt. `begin`: when the deploy began."""
    client = LedgerClient(f"http://{HOST}:{port}")
    try:
        wait_until(lambda: client.health()[1] == "ok", "health", timeout_s=_HEALTHY_TIMEOUT_S, poll_s=SLOW_POLL_S)
        start_s = time.monotonic() - begin
        client.learn([LONG, MIDDLE, *SHORT])
        wait_until(lambda: client.health()[1] == "ok", "health", timeout_s=_HEALTHY_TIMEOUT_S)
        yield Site(client, settings, start_s, count_processes(), extra)
    finally:
        client.close()
