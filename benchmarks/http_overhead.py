"""What HTTP adds to a picture, and pictures a second against a plain Ray Serve app on the same cores.

    python -m benchmarks.http_overhead [--ranks 1 2] [--steps N] [--seconds S] [--concurrency N]

Three arms, one after the other, each alone on the machine: a group called directly (`WorkerGroup`, no Serve), the
service over HTTP, and `benchmarks/plain_serve.py` over HTTP. All make the same picture, which is checked. With n ranks
the service has one group of n ranks and CFG degree n, the plain app n replicas; a rank or replica computes on one core.
The client runs on the same machine. `--seconds` bounds it; most of the time goes into six starts of Ray.
"""

import argparse
import asyncio
import base64
import io
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
from PIL import Image

from benchmarks.record import keep
from deployments.local_ray import local_ray
from deployments.local_serve import find_port, run_app
from deployments.settings import AppSettings
from planner.actor import ask_planner
from planner.plan import PlanRequest
from workers.calls import GenerateCall, GenerateResult
from workers.group import WorkerGroup

SHAPES = Path(__file__).parent.parent / "checkpoints" / "shapes"
PROMPT, SEED, GUIDANCE, SIZE = "a red circle on a white background", 7, 4.0, (64, 64)
_TIMEOUT_S = 120.0
_NUM_WARM_UP = 3
_NUM_CPUS = 4  # as Ray counts them: ranks or replicas take one each, what stands in front of them next to nothing

Ask = Callable[[], Awaitable[None]]
"""Makes one picture and waits for it."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured: seconds of load, once by one client and once by `concurrency`."""

    num_steps: int
    seconds: float
    concurrency: int

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        return {
            "prompt": PROMPT, "seed": SEED, "num_inference_steps": self.num_steps, "guidance_scale": GUIDANCE,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one arm at one concurrency."""

    p50_s: float
    pictures_per_s: float
    num_pictures: int


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=(1, 2))
    parser.add_argument("--steps", type=int, default=8, help="denoising steps a picture")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load, for each arm and concurrency")
    parser.add_argument("--concurrency", type=int, default=16, help="clients at saturation")
    parser.add_argument("--folder", type=Path, help="where the figures are kept (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    load = Load(options.steps, options.seconds, options.concurrency)
    rows = []
    for num_ranks in options.ranks:
        rows += measure(load, num_ranks)
    keep("http_overhead", rows, folder=options.folder)


def measure(load: Load, num_ranks: int) -> list[dict[str, Any]]:
    """All arms at one number of ranks, as rows."""
    arms: dict[str, dict[int, Figures]] = {}
    pictures: dict[str, Any] = {}
    for name, arm in (("group", _group_alone), ("service", _service), ("plain", _plain_app)):
        with arm(load, num_ranks) as (runner, picture):
            pictures[name], arms[name] = picture, runner()
    _check_same_work(pictures, num_ranks)
    rows = []
    for num_clients in (1, load.concurrency):
        group, service, plain = (arms[name][num_clients] for name in ("group", "service", "plain"))
        rows.append({
            "ranks": num_ranks,
            "clients": num_clients,
            "group_p50_ms": 1e3 * group.p50_s,
            "service_p50_ms": 1e3 * service.p50_s,
            "added_p50_ms": 1e3 * (service.p50_s - group.p50_s),
            "plain_p50_ms": 1e3 * plain.p50_s,
            "group_per_s": group.pictures_per_s,
            "service_per_s": service.pictures_per_s,
            "plain_per_s": plain.pictures_per_s,
            "service_to_plain": service.pictures_per_s / plain.pictures_per_s,
            "num_pictures": service.num_pictures,
        })  # fmt: skip
    return rows


Arm = Iterator[tuple[Callable[[], dict[int, Figures]], Any]]
"""What runs the load, and the arm's picture, (H, W, 3) uint8."""


@contextmanager
def _group_alone(load: Load, num_ranks: int) -> Arm:
    with local_ray(num_cpus=_NUM_CPUS):
        plan = ask_planner(str(SHAPES), PlanRequest(**_plan_request(num_ranks)))
        group = WorkerGroup.start(plan)
        arguments = {
            "prompt": PROMPT, "num_inference_steps": load.num_steps, "guidance_scale": GUIDANCE,
            "width": SIZE[0], "height": SIZE[1], "num_frames": 1,
        }  # fmt: skip

        async def make() -> Any:
            async for event in group.stream(GenerateCall(arguments, seed=SEED)):
                if isinstance(event, GenerateResult):
                    return event.output[0][0]
            raise AssertionError("a group ends a call with its result")

        async def ask() -> None:
            await make()

        try:
            for _ in range(_NUM_WARM_UP):
                picture = asyncio.run(make())
            yield lambda: asyncio.run(_run_load(load, ask)), picture
        finally:
            group.shutdown()


@contextmanager
def _service(load: Load, num_ranks: int) -> Arm:
    with ExitStack() as stack:
        stack.enter_context(_ray_with_serve())
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="heliograph-overhead-"))
        settings = AppSettings.model_validate(
            {"checkpoint": str(SHAPES), "plan": _plan_request(num_ranks), "state": {"folder": state}}
        )
        port = find_port("127.0.0.1", 0)
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
        run_app(settings, host="127.0.0.1", port=port, logs=logs)
        yield _over_http(load, f"http://127.0.0.1:{port}")


@contextmanager
def _plain_app(load: Load, num_ranks: int) -> Arm:
    from ray import serve

    from benchmarks.plain_serve import build_plain_app

    with _ray_with_serve():
        port = find_port("127.0.0.1", 0)
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        serve.run(build_plain_app(str(SHAPES), num_replicas=num_ranks, num_threads=1, size=SIZE), name="plain")
        yield _over_http(load, f"http://127.0.0.1:{port}")


@contextmanager
def _ray_with_serve() -> Iterator[None]:
    from ray import serve

    with local_ray(num_cpus=_NUM_CPUS):
        try:
            yield
        finally:
            serve.shutdown()


def _over_http(load: Load, url: str) -> tuple[Callable[[], dict[int, Figures]], Any]:
    def run() -> dict[int, Figures]:
        return asyncio.run(_load_over_http(load, url))

    for _ in range(_NUM_WARM_UP * 2):  # every replica has answered before
        answer = httpx.post(f"{url}/v1/images/generations", json=load.body, timeout=_TIMEOUT_S).raise_for_status()
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return run, np.asarray(Image.open(io.BytesIO(content)))


async def _load_over_http(load: Load, url: str) -> dict[int, Figures]:
    limits = httpx.Limits(max_connections=load.concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client:

        async def ask() -> None:
            answer = await client.post("/v1/images/generations", json=load.body)
            assert answer.status_code == 200, answer.text

        return await _run_load(load, ask)


async def _run_load(load: Load, ask: Ask) -> dict[int, Figures]:
    return {num_clients: await _clients(ask, num_clients, load.seconds) for num_clients in (1, load.concurrency)}


async def _clients(ask: Ask, num_clients: int, seconds: float) -> Figures:
    """Each client asks again as soon as it is answered, until the time is over; the last answers are waited for."""
    latencies: list[float] = []
    start = time.monotonic()

    async def client() -> None:
        while time.monotonic() - start < seconds:
            asked = time.monotonic()
            await ask()
            latencies.append(time.monotonic() - asked)

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return Figures(statistics.median(latencies), len(latencies) / (time.monotonic() - start), len(latencies))


def _plan_request(num_ranks: int) -> dict[str, Any]:
    return {"device": "cpu", "num_ranks": num_ranks, "cfg_degree": num_ranks, "cpus_per_rank": 1}


def _check_same_work(pictures: dict[str, Any], num_ranks: int) -> None:
    """All arms made one picture; the plain app pads no prompt and adds in another order at most."""
    for name, picture in pictures.items():
        difference = np.abs(picture.astype(int) - pictures["plain"]).max()
        assert difference <= 1, f"{name} at {num_ranks} rank(s) made another picture: off by {difference}"


if __name__ == "__main__":
    main()
