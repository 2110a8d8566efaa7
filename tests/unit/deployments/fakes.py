"""Groups without Ray, for tests of what stands in front of them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from deployments.front import open_front
from deployments.group_client import GeneratedMedia, GroupEvent, GroupsStatus, PreviewFile, Probe
from deployments.http_api import build_api
from deployments.schemas import GenerationRequest, VideoRequest
from deployments.served_model import ServedModel
from deployments.service import Service
from deployments.settings import AppSettings, StateSettings
from planner.plan import ServingDefaults
from tests.plans import make_wan_plan
from workers.calls import GroupDescription, Progress
from workers.errors import GroupDiedError

WAN = GroupDescription(
    pipeline_class="WanPipeline",
    accepted_arguments=(
        "prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "num_frames",
    ),
    makes_video=True,
    size_multiple=16,
    load_seconds={},
    weight_bytes_read=(1,),
)  # fmt: skip
DEFAULTS = ServingDefaults(width=32, height=32, num_inference_steps=2, guidance_scale=4.0, num_frames=5, fps=8)


class FakeGroups:
    """Answers with the seed as the file's content; `failures` are raised first, `gate` holds calls back."""

    def __init__(
        self,
        *,
        failures: list[Exception] | None = None,
        gate: asyncio.Event | None = None,
        description: GroupDescription = WAN,
    ) -> None:
        self.failures = failures or []
        self.gate = gate
        self.description = description
        self.requests: list[GenerationRequest] = []
        self.seeds: list[int] = []
        self.request_ids: list[str] = []
        self.cancelled_ids: list[str] = []
        self.num_closed = 0
        self.num_described = 0
        self.num_groups = 1
        self.may_be_none = True
        self.probe_answer: Probe = "ok"
        self.dies_before_beginning = False  # while the request waits behind another one
        self.begun = asyncio.Event()

    async def stream(
        self, request: GenerationRequest, *, seed: int, request_id: str, deadline_s: float
    ) -> AsyncGenerator[GroupEvent, None]:
        self.requests.append(request)
        self.seeds.append(seed)
        self.request_ids.append(request_id)
        if self.dies_before_beginning:
            raise GroupDiedError("gone")
        try:
            yield Progress(stage="denoise", step=1, num_steps=2, seconds_left=0.5)
            self.begun.set()
            if self.gate is not None:
                await self.gate.wait()
            if self.failures:
                raise self.failures.pop(0)
            for index in range(getattr(request, "partial_images", 0)):
                yield PreviewFile(content=b"preview", index=index, width=32, height=32)
            thumbnail = b"thumbnail" if isinstance(request, VideoRequest) else None
            yield GeneratedMedia(content=str(seed).encode(), thumbnail=thumbnail, seed=seed, width=32, height=32)
        finally:
            self.num_closed += 1

    async def cancel(self, request_id: str) -> None:
        self.cancelled_ids.append(request_id)

    async def describe(self) -> GroupDescription:
        self.num_described += 1
        return self.description

    async def status(self) -> GroupsStatus:
        return GroupsStatus(self.num_groups, may_be_none=self.may_be_none)

    async def probe(self, *, timeout_s: float, num_running: int) -> Probe:
        return self.probe_answer


def make_service(groups: FakeGroups, *others: FakeGroups, max_calls: int | None = None, **settings: object) -> Service:
    """A service of one model, or with `models` in the settings of one a fake."""
    one_model = {} if "models" in settings else {"checkpoint": "/models/shapes"}
    app = AppSettings.model_validate({**one_model, **settings})
    plan = make_wan_plan(Path("/models/shapes")).model_copy(update={"defaults": DEFAULTS})
    models = [
        ServedModel(
            model,
            plan,
            fake,
            max_queued_requests=app.max_queued_requests,
            max_queued_seconds=app.queue_ceiling_s,
            max_calls=max_calls,
        )
        for model, fake in zip(app.served_models, (groups, *others), strict=True)
    ]
    return Service(app, models)


@asynccontextmanager
async def open_client(
    service: Service, folder: Path, *, state: dict[str, str] | None = None, **headers: str
) -> AsyncGenerator[httpx.AsyncClient, None]:
    """The HTTP API in this process, with a database and results in `folder` where `state` does not say other places."""
    settings = StateSettings(folder=str(folder), **(state or {}))
    service.settings = service.settings.model_copy(update={"state": settings})
    front = await open_front(service)
    try:
        api = build_api(service, front.desk, front.keys)
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            yield client
    finally:
        await front.close()


async def wait_until(condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 20.0) -> None:
    """Polls a condition with a deadline."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)
