"""The leader: runs the pipeline's code; its denoiser calls go through the seam."""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from planner.kinds import classify_component, runs_every_step
from planner.plan import ComponentKind, Plan
from workers.attributes import find_attribute
from workers.block_checks import add_block_checks
from workers.calls import GenerateCall, GenerateResult, GroupDescription, Preview, Progress, RankStats
from workers.compilation import GraphWatch
from workers.component_call import LocalComponent, count_work
from workers.components import RankComponents
from workers.errors import CallError, CallOutOfMemoryError, InvalidCallError, WorkerError
from workers.flow_shift import flow_shift, takes_flow_shift
from workers.guiders import Guiders
from workers.keywords import accepted_keywords
from workers.lanes import Lanes
from workers.out_of_memory import free_memory_of, is_out_of_memory
from workers.pipeline_output import normalize_output
from workers.previews import Previews
from workers.rank_measurements import measure_rank
from workers.remote_call import RemoteComponents
from workers.replay import Replay
from workers.request_control import RequestControl, RunningRequest
from workers.schedule_progress import StepCounter
from workers.scheduler_watch import watch_scheduler
from workers.seam import Seam
from workers.sharding import is_sharded
from workers.stand_in import is_stand_in

logger = logging.getLogger(__name__)
_INPUT_ERRORS = (ValueError, TypeError, KeyError)


class Leader:
    """Runs one call at a time on the compute thread; `cancel` comes from any thread.

    Args:
        pipeline: the diffusers pipeline with its components in place.
        lanes: the group's lanes; their local components become the seam's.
        components: what the leader has loaded.
        predicted_step_s: seconds of a step by the plan; None if it does not say.
        remote: the components that lie on other ranks, if there are any.

    Raises:
        GroupStartError: the pipeline needs what a group of this layout cannot do.
    """

    def __init__(
        self,
        pipeline: Any,
        lanes: Lanes,
        *,
        components: RankComponents,
        predicted_step_s: float | None = None,
        remote: RemoteComponents | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._lanes = lanes
        self._components = components
        self._graphs = GraphWatch()
        self._predicted_step_s = predicted_step_s
        self._request = RunningRequest() if remote is None else remote.request
        self._steps = StepCounter(pipeline, ())
        self._guiders = Guiders(pipeline.components)
        self._guiders.check_layout(lanes.layout)
        self._schedulers = [c for c in pipeline.components.values() if _is_scheduler(c)]
        self.seam = Seam(lanes, before_call=self._before_call)
        for name, component in lanes.local.items():
            self.seam.attach(name, component.module)
        self._watch_blocks()
        self.previews = Previews(pipeline, self._replay())
        for scheduler in self._schedulers:
            watch_scheduler(scheduler, self._on_step, run_step=self.previews.run_step)
        if remote is not None:
            remote.on_call = self._before_remote_call
        self._arguments = accepted_keywords(pipeline.__call__)

    def describe(self, *, load_seconds: Mapping[str, float], weight_bytes_read: tuple[int, ...]) -> GroupDescription:
        """What this group can do."""
        names = tuple(sorted(self._arguments.names))
        return GroupDescription(
            pipeline_class=type(self._pipeline).__name__,
            accepted_arguments=names,
            makes_video="num_frames" in names,
            size_multiple=_size_multiple(self._pipeline),
            load_seconds=dict(load_seconds),
            weight_bytes_read=weight_bytes_read,
            takes_flow_shift=takes_flow_shift(self._schedulers),
        )

    def cancel(self, request_id: str) -> None:
        """Ends a running call at its next check (between blocks, calls and steps), or a not yet started one."""
        self._request.cancel(request_id)

    def run(self, call: GenerateCall, emit: Callable[[Progress | Preview], None]) -> GenerateResult:
        """Runs one call.

        Raises:
            InvalidCallError: the pipeline refuses the arguments.
            CallError: the call failed; the next one finds a clean group.
            GroupDiedError: a rank is gone.
        """
        self._check_arguments(call)
        seed = secrets.randbits(31) if call.seed is None else call.seed
        before = self.seam.counts.snapshot()
        control = RequestControl(deadline_s=call.deadline_s, predicted_step_s=self._predicted_step_s, emit=emit)
        self._begin(call, control)
        try:
            with self._lanes.during_request(call.deadline_s):
                control.check()
                result, kind = self._run_pipeline(call, control, seed)
                control.finish()
        finally:
            self._end()
        ranks = self._rank_stats()
        self._graphs.report(ranks)
        stage_seconds = control.stage_seconds
        logger.info(
            "request %s: encode %.2f s, denoise %.2f s, decode %.2f s", call.request_id, *stage_seconds.values()
        )
        seam = self.seam.counts.since(before)
        return GenerateResult(
            result, kind, seed, stage_seconds, ranks, seam,
            num_previews=control.num_previews, num_failed_previews=self.previews.num_failed,
        )  # fmt: skip

    def close(self) -> None:
        """Sends the followers home."""
        self._lanes.close()

    def _check_arguments(self, call: GenerateCall) -> None:
        unknown = sorted(name for name in call.arguments if not self._arguments.accepts(name))
        if unknown:
            raise InvalidCallError(f"{type(self._pipeline).__name__} takes no argument {', '.join(unknown)}")
        if "generator" in call.arguments:
            raise InvalidCallError("pass seed instead of generator")
        if call.flow_shift is not None and not takes_flow_shift(self._schedulers):
            raise InvalidCallError(f"{type(self._pipeline).__name__} has no schedule with a shift to set")

    def _begin(self, call: GenerateCall, control: RequestControl) -> None:
        self._request.begin(call.request_id, control)
        self._steps = StepCounter(self._pipeline, self._schedulers)
        self._lanes.start_request()
        self._components.start_request()

    def _end(self) -> None:
        self.seam.reset()
        self._request.end()

    def _run_pipeline(self, call: GenerateCall, control: RequestControl, seed: int) -> tuple[Any, Any]:
        torch.manual_seed(seed)  # for what pipelines draw without a generator (StableDiffusion3ControlNetPipeline)
        arguments = dict(call.arguments)
        if self._arguments.accepts("generator"):
            arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
        self._guiders.restore()
        output_type = arguments.get("output_type")
        if output_type is None and self._arguments.accepts("output_type"):
            arguments["output_type"] = "np"
        try:
            previews = self.previews.during(arguments, seed=seed, num_previews=call.num_previews, steps=self._steps)
            with torch.no_grad(), flow_shift(self._schedulers, call.flow_shift), previews:
                return normalize_output(self._pipeline(**arguments), output_type=output_type)
        except CallError:
            control.check()  # if the time is over, that is the cause, in terms of this request's whole deadline
            raise
        except WorkerError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                logger.warning("request %s: out of memory: %s", call.request_id, error)
                free_memory_of(error)
                raise CallOutOfMemoryError(f"out of memory on rank 0: {error}") from None
            raise self._as_call_error(error, control) from error

    def _as_call_error(self, error: Exception, control: RequestControl) -> CallError:
        """A pipeline checks its arguments before its first denoiser call: what it refuses there is the caller's."""
        text = f"{type(self._pipeline).__name__}: {type(error).__name__}: {error}"
        if not control.has_called_denoiser and isinstance(error, _INPUT_ERRORS):
            return InvalidCallError(text)
        logger.exception("a call failed")
        return CallError(text)

    def _rank_stats(self) -> tuple[RankStats, ...]:
        own = {
            **count_work(self._lanes.local.values()),
            **measure_rank(weight_bytes_read=self._components.bytes_read),
        }
        counts = {0: own, **self._lanes.stats()}
        return tuple(RankStats(world_rank=rank, **counts[rank]) for rank in sorted(counts))

    def _before_call(self, component: str) -> None:
        control = self._request.control
        if control is None:
            return
        if self._lanes.local[component].is_denoiser:
            control.on_denoiser_call(self._steps.num_steps)
        else:
            control.check()

    def _on_step(self, scheduler: Any, timestep: Any) -> None:
        self.seam.end_step()
        self._request.check()
        control = self._request.control
        if control is None:
            return
        if not self._steps.on_step(scheduler, timestep):
            self.previews.refuse_parts()
            return
        control.on_step(self._steps.num_steps_done, self._steps.num_steps)
        start = time.monotonic()
        pixels = self.previews.show()
        if pixels is not None:
            control.on_preview(pixels, seconds=time.monotonic() - start)

    def _replay(self) -> Replay:
        """Stands before all that a preview does without: everything but autoencoders."""
        modules = {
            name: module
            for name, module in self._pipeline.components.items()
            if isinstance(module, torch.nn.Module) and not _is_vae(name, module)
        }
        return Replay(modules, costly=frozenset(self._lanes.local))

    def _watch_blocks(self) -> None:
        """Lets a call be ended between the blocks of what the pipeline itself calls: encoders, autoencoders."""
        for name, module in self._pipeline.components.items():
            if not isinstance(module, torch.nn.Module) or name in self._lanes.local:
                continue
            if not is_sharded(module) and not is_stand_in(module):
                num_blocks = add_block_checks(
                    module, self._on_vae_block if _is_vae(name, module) else self._request.check
                )
                logger.info("%s: a call can be ended before each of %d blocks", name, num_blocks)

    def _before_remote_call(self, component: str) -> None:
        if _is_vae(component, getattr(self._pipeline, component)):
            self._on_vae_block()

    def _on_vae_block(self) -> None:
        control = self._request.control
        if control is not None:
            control.on_vae_call()


def local_components(plan: Plan, components: RankComponents) -> dict[str, LocalComponent]:
    """The rank's components whose calls the leader sends: those of the loop, and what is sharded over several ranks."""
    local = {}
    for component in plan.components:
        if component.name in components.modules and (runs_every_step(component.kind) or len(component.ranks) > 1):
            module, is_denoiser = components.modules[component.name], component.kind is ComponentKind.DENOISER
            local[component.name] = LocalComponent.wrap(component.name, module, is_denoiser=is_denoiser)
            if component.name not in components.offloaded:
                local[component.name].make_room = components.turns.unload_all
    return local


def _is_scheduler(component: Any) -> bool:
    return hasattr(component, "step") and hasattr(component, "set_timesteps")


def _is_vae(name: str, module: torch.nn.Module) -> bool:
    class_name, library = type(module).__name__, type(module).__module__.partition(".")[0]
    return classify_component(name, class_name=class_name, library=library) is ComponentKind.VAE


def _size_multiple(pipeline: Any) -> int:
    """Pixels that width and height must be multiples of: the VAE's factor times the denoiser's patch."""
    factor = getattr(pipeline, "vae_scale_factor_spatial", None) or getattr(pipeline, "vae_scale_factor", None) or 8
    config = find_attribute(getattr(pipeline, "transformer", None), "config")
    patch = getattr(config, "patch_size", 1) or 1
    return int(factor) * int(patch[-1] if isinstance(patch, list | tuple) else patch)
