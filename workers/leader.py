"""The leader: runs the pipeline's code; its denoiser calls go through the seam."""

import inspect
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from planner.plan import ComponentKind, Plan
from workers.calls import GenerateCall, GenerateResult, GroupDescription, Progress, RankStats
from workers.compilation import GraphWatch
from workers.component_call import LocalComponent
from workers.components import RankComponents
from workers.errors import CallCancelledError, CallError, InvalidCallError, WorkerError
from workers.guiders import Guiders
from workers.lanes import Lanes
from workers.memory import peak_bytes
from workers.pipeline_output import normalize_output
from workers.request_control import RequestControl
from workers.scheduler_watch import num_scheduler_steps, watch_scheduler
from workers.seam import Seam

logger = logging.getLogger(__name__)
_MAX_CANCELLED_IDS = 256  # cancelled before they began, or after they ended: those must not pile up
_INPUT_ERRORS = (ValueError, TypeError, KeyError)


class Leader:
    """Runs one call at a time on the compute thread; `cancel` comes from any thread.

    Args:
        pipeline: the diffusers pipeline with its components in place.
        lanes: the group's lanes; their local components become the seam's.
        components: what the leader has loaded.

    Raises:
        GroupStartError: the pipeline needs what a group of this layout cannot do.
    """

    def __init__(self, pipeline: Any, lanes: Lanes, *, components: RankComponents) -> None:
        self._pipeline = pipeline
        self._lanes = lanes
        self._components = components
        self._graphs = GraphWatch()
        self._control: RequestControl | None = None
        self._running_id: str | None = None
        self._cancelled_ids: deque[str] = deque(maxlen=_MAX_CANCELLED_IDS)
        self._lock = threading.Lock()
        self._guiders = Guiders(pipeline.components)
        self._guiders.check_layout(lanes.layout)
        self._schedulers = [c for c in pipeline.components.values() if _is_scheduler(c)]
        self.seam = Seam(lanes, before_call=self._before_call)
        for name, component in lanes.local.items():
            self.seam.attach(name, component.module)
        for scheduler in self._schedulers:
            watch_scheduler(scheduler, self._on_step)
        self._parameters = inspect.signature(type(pipeline).__call__).parameters

    def describe(self, *, load_seconds: Mapping[str, float], weight_bytes_read: tuple[int, ...]) -> GroupDescription:
        """What this group can do."""
        names = tuple(name for name in self._parameters if name not in ("self", "args", "kwargs"))
        return GroupDescription(
            pipeline_class=type(self._pipeline).__name__,
            accepted_arguments=names,
            makes_video="num_frames" in names,
            size_multiple=_size_multiple(self._pipeline),
            load_seconds=dict(load_seconds),
            weight_bytes_read=weight_bytes_read,
        )

    def cancel(self, request_id: str) -> None:
        """Ends a running or a not yet started call."""
        with self._lock:
            if self._running_id == request_id and self._control is not None:
                self._control.cancel()
            else:
                self._cancelled_ids.append(request_id)

    def run(self, call: GenerateCall, emit: Callable[[Progress], None]) -> GenerateResult:
        """Runs one call.

        Raises:
            InvalidCallError: the pipeline refuses the arguments.
            CallError: the call failed; the next one finds a clean group.
            GroupDiedError: a rank is gone.
        """
        self._check_arguments(call)
        seed = secrets.randbits(31) if call.seed is None else call.seed
        self._begin(call, emit)
        try:
            result, kind = self._run_pipeline(call, seed)
            assert self._control is not None
            self._control.finish()
            stage_seconds = self._control.stage_seconds
        finally:
            self._end()
        self._graphs.report()
        logger.info(
            "request %s: encode %.2f s, denoise %.2f s, decode %.2f s", call.request_id, *stage_seconds.values()
        )
        return GenerateResult(result, kind, seed, stage_seconds, self._rank_stats())

    def close(self) -> None:
        """Sends the followers home."""
        self._lanes.close()

    def _check_arguments(self, call: GenerateCall) -> None:
        unknown = sorted(set(call.arguments) - set(self._parameters) - {"self"})
        if unknown and "kwargs" not in self._parameters:
            raise InvalidCallError(f"{type(self._pipeline).__name__} takes no argument {', '.join(unknown)}")
        if "generator" in call.arguments:
            raise InvalidCallError("pass seed instead of generator")

    def _begin(self, call: GenerateCall, emit: Callable[[Progress], None]) -> None:
        with self._lock:
            if call.request_id in self._cancelled_ids:
                self._cancelled_ids.remove(call.request_id)
                raise CallCancelledError("the call was cancelled before it began")
            self._control = RequestControl(deadline_s=call.deadline_s, emit=emit)
            self._running_id = call.request_id
        self._lanes.start_request()
        self._components.start_request()

    def _end(self) -> None:
        self.seam.reset()
        with self._lock:
            self._control = self._running_id = None

    def _run_pipeline(self, call: GenerateCall, seed: int) -> tuple[Any, Any]:
        torch.manual_seed(seed)  # for what pipelines draw without a generator (StableDiffusion3ControlNetPipeline)
        arguments = dict(call.arguments)
        if "generator" in self._parameters:
            arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
        self._guiders.restore()
        output_type = arguments.get("output_type")
        if output_type is None and "output_type" in self._parameters:
            arguments["output_type"] = "np"
        try:
            with torch.no_grad():
                return normalize_output(self._pipeline(**arguments), output_type=output_type)
        except WorkerError:
            raise
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise CallError(f"out of memory: {error}") from error
        except Exception as error:
            raise self._as_call_error(error) from error

    def _as_call_error(self, error: Exception) -> CallError:
        """A pipeline checks its arguments before its first denoiser call: what it refuses there is the caller's."""
        text = f"{type(self._pipeline).__name__}: {type(error).__name__}: {error}"
        is_refusal = self._control is not None and not self._control.has_called_denoiser
        if is_refusal and isinstance(error, _INPUT_ERRORS):
            return InvalidCallError(text)
        logger.exception("a call failed")
        return CallError(text)

    def _rank_stats(self) -> tuple[RankStats, ...]:
        local = self._lanes.local.values()
        own = {
            "denoiser_calls": sum(component.num_calls for component in local),
            "denoiser_rows": sum(component.num_rows for component in local),
            "weight_bytes_read": self._components.bytes_read,
            "peak_bytes": peak_bytes(),
        }
        counts = {0: own, **self._lanes.stats()}
        return tuple(RankStats(world_rank=rank, **counts[rank]) for rank in sorted(counts))

    def _before_call(self, component: str) -> None:
        if component not in self._components.offloaded:  # a resident one needs the memory of those that take turns
            self._components.turns.unload_all()
        if self._control is None:
            return
        if self._lanes.local[component].is_denoiser:
            self._control.on_denoiser_call(self._num_steps())
        else:
            self._control.check()

    def _on_step(self, scheduler: Any) -> None:
        self.seam.end_step()
        if self._control is not None:
            self._control.on_step(num_scheduler_steps(scheduler))

    def _num_steps(self) -> int | None:
        return num_scheduler_steps(self._schedulers[0]) if self._schedulers else None


def local_components(plan: Plan, modules: Mapping[str, torch.nn.Module]) -> dict[str, LocalComponent]:
    """The rank's components whose calls the leader sends: denoisers, and what is sharded over several ranks."""
    return {
        component.name: LocalComponent.wrap(
            component.name, modules[component.name], is_denoiser=component.kind is ComponentKind.DENOISER
        )
        for component in plan.components
        if component.name in modules and (component.kind is ComponentKind.DENOISER or len(component.ranks) > 1)
    }


def _is_scheduler(component: Any) -> bool:
    return hasattr(component, "step") and hasattr(component, "set_timesteps")


def _size_multiple(pipeline: Any) -> int:
    """Pixels that width and height must be multiples of: the VAE's factor times the denoiser's patch."""
    factor = getattr(pipeline, "vae_scale_factor_spatial", None) or getattr(pipeline, "vae_scale_factor", None) or 8
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    patch = getattr(config, "patch_size", 1) or 1
    return int(factor) * int(patch[-1] if isinstance(patch, list | tuple) else patch)
