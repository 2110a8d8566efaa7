"""Groups without Ray, for tests of what stands in front of them."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from deployments.group_client import GeneratedMedia, Probe
from deployments.schemas import GenerationRequest
from deployments.service import Service
from deployments.settings import AppSettings
from planner.plan import ServingDefaults
from tests.plans import make_wan_plan
from workers.calls import GroupDescription, Progress

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

    def __init__(self, *, failures: list[Exception] | None = None, gate: asyncio.Event | None = None) -> None:
        self.failures = failures or []
        self.gate = gate
        self.seeds: list[int] = []
        self.num_closed = 0
        self.num_groups = 1
        self.probe_answer: Probe = "ok"

    async def stream(
        self, request: GenerationRequest, *, seed: int, request_id: str, deadline_s: float
    ) -> AsyncGenerator[Progress | GeneratedMedia, None]:
        self.seeds.append(seed)
        try:
            yield Progress(stage="denoise", step=1, num_steps=2, seconds_left=0.5)
            if self.gate is not None:
                await self.gate.wait()
            if self.failures:
                raise self.failures.pop(0)
            yield GeneratedMedia(content=str(seed).encode(), seed=seed, width=32, height=32)
        finally:
            self.num_closed += 1

    async def describe(self) -> GroupDescription:
        return WAN

    async def num_running(self) -> int:
        return self.num_groups

    async def probe(self, *, timeout_s: float) -> Probe:
        return self.probe_answer


def make_service(groups: FakeGroups, **settings: object) -> Service:
    plan = make_wan_plan(Path("/models/shapes")).model_copy(update={"defaults": DEFAULTS})
    return Service(AppSettings.model_validate({"checkpoint": "/models/shapes", **settings}), plan, groups)
