"""One call on a group of this process's own, without Serve: plan, start, run, save, stop."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deployments.commands.planning import make_plan
from deployments.commands.progress import ProgressDisplay
from deployments.errors import BadRequestError, SettingsError
from deployments.local_ray import local_ray
from deployments.media import encode_image, encode_mp4
from deployments.pipeline_call import build_arguments, frames_per_second
from deployments.schemas import ImageRequest, VideoRequest
from deployments.settings import explain_validation
from planner.cluster import cluster_of_this_machine
from planner.plan import Plan, PlanRequest
from workers.calls import GenerateCall, GenerateResult, GroupDescription, RankStats

_SUFFIXES = (".png", ".mp4", ".safetensors")


@dataclass(frozen=True, slots=True)
class OneCall:
    """A checked request and the file that its result goes to."""

    request: ImageRequest | VideoRequest
    output: Path

    @classmethod
    def read(cls, *, output: Path, num_frames: int | None, fps: int | None, **fields: Any) -> "OneCall":
        """Checks what can be checked before anything starts.

        Raises:
            SettingsError: an option is wrong, or the file cannot be written where it is to go.
        """
        if output.suffix not in _SUFFIXES:
            raise SettingsError(f"--output {output}: the name must end in {', '.join(_SUFFIXES)}")
        if not output.absolute().parent.is_dir():
            raise SettingsError(f"--output {output}: the folder {output.parent} does not exist")
        if output.is_dir():
            raise SettingsError(f"--output {output} is a folder: name a file")
        if output.suffix == ".png" and (num_frames or 1) > 1:
            raise SettingsError(f"--num-frames {num_frames} makes a video: name the --output .mp4")
        given = {name: value for name, value in fields.items() if value is not None}
        is_video = output.suffix == ".mp4" or num_frames is not None
        try:
            if is_video:
                return cls(VideoRequest(num_frames=num_frames, fps=fps, **given), output)
            return cls(ImageRequest(**given), output)
        except ValidationError as error:
            raise SettingsError(explain_validation(error)) from error

    def arguments(self, plan: Plan, description: GroupDescription) -> dict[str, Any]:
        """The pipeline's arguments.

        Raises:
            BadRequestError: this pipeline cannot do it.
        """
        arguments = build_arguments(self.request, plan.defaults, description)
        if self.output.suffix == ".safetensors":
            arguments["output_type"] = "latent"
        return arguments

    def save(self, result: GenerateResult, plan: Plan) -> None:
        """Writes the file."""
        if result.output_kind == "latent":
            from safetensors.torch import save_file

            save_file({"latents": result.output.contiguous()}, self.output)
            return
        pixels = result.output[0]
        if self.output.suffix == ".mp4":
            if result.output_kind != "video":
                raise BadRequestError(f"{plan.pipeline_class} makes no videos: name the --output .png")
            assert isinstance(self.request, VideoRequest)
            self.output.write_bytes(encode_mp4(pixels, fps=frames_per_second(self.request, plan.defaults)))
        else:
            first = pixels[0] if result.output_kind == "video" else pixels
            self.output.write_bytes(encode_image(first, output_format="png"))


@dataclass(frozen=True, slots=True)
class CallReport:
    """What was made, how long each stage took, and what each rank did."""

    output: Path
    seed: int
    seconds: dict[str, float]
    ranks: tuple[RankStats, ...]

    def to_json(self) -> str:
        """The report for programs."""
        return json.dumps(
            {
                "output": str(self.output),
                "seed": self.seed,
                "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
                "ranks": [asdict(rank) for rank in self.ranks],
            },
            indent=2,
        )

    def to_text(self) -> str:
        """The report for people."""
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        return f"{self.output} (seed {self.seed}; {stages}; {len(self.ranks)} ranks)"


def run_one_call(checkpoint: str, request: PlanRequest, call: OneCall, *, as_json: bool) -> CallReport:
    """Plans and runs one call; everything that was started is gone when it returns or raises.

    Raises:
        PlannerError: no plan.
        GroupStartError: the group did not come up.
        CallError: the call failed.
    """
    seconds: dict[str, float] = {}
    with ProgressDisplay() as display:
        display.say("plan")
        with _timed(seconds, "plan"):
            plan = make_plan(checkpoint, cluster_of_this_machine(), request, as_json=as_json)
        result = _run(plan, call, seconds, display)
        seconds.update(result.stage_seconds)
        with _timed(seconds, "save"):
            call.save(result, plan)
    return CallReport(call.output, result.seed, seconds, result.ranks)


def _run(plan: Plan, call: OneCall, seconds: dict[str, float], display: ProgressDisplay) -> GenerateResult:
    start = time.monotonic()
    display.say(f"start {plan.group.num_ranks} ranks")
    num_cpus = sum(bundle.get("CPU", 0) for bundle in plan.group.bundles) + 1
    # The plan is for this machine's memory; Ray by itself would keep a part of it for objects.
    with local_ray(num_cpus=num_cpus, memory_bytes=plan.memory.host_capacity_bytes):
        from workers.group import WorkerGroup

        group = WorkerGroup.start(plan, on_load=lambda event: display.say(str(event)))
        try:
            seconds["start"] = time.monotonic() - start
            arguments = call.arguments(plan, group.describe())
            return group.generate(GenerateCall(arguments, seed=call.request.seed), on_progress=display.on_step)
        finally:
            group.shutdown(timeout_s=2.0)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
