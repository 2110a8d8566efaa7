"""How many groups a model needs, by the work that waits for them. Serve's controller runs this with nothing but Ray.

A request's cost varies a thousandfold (one picture of four steps, a long video), so a number of requests says little:
the policy looks at the GPU-seconds that wait. It is a pure function; `WaitingWorkPolicy` is the way to the controller.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COST_METRIC = "gpu_seconds_a_request"
"""What each group reports to Serve: the mean cost of its latest requests."""
_RESOLUTION_S = 1.0


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Attributes:
    min_replicas: groups that are always there; 0 lets the last one go.
    max_replicas: never more groups than this.
    target_gpu_seconds: work that may wait before one group.
    up_delay_s: how long more groups must be needed before they are started.
    down_delay_s: how long fewer must suffice before the others end.
    to_zero_delay_s: how long there must be nothing to do before the last one ends.
    """

    min_replicas: int
    max_replicas: int
    target_gpu_seconds: float
    up_delay_s: float
    down_delay_s: float
    to_zero_delay_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be done at one moment.

    Attributes:
        now: seconds.
        waiting_gpu_seconds: cost of the requests that no group works on yet.
        num_busy: groups at work.
        num_replicas: groups that there are, or are being started.
    """

    now: float
    waiting_gpu_seconds: float
    num_busy: int
    num_replicas: int


Need = tuple[float, int]
"""A moment, and the groups that were needed then."""


def needed_replicas(load: Load, settings: ScalingSettings) -> int:
    """Groups for this load: those at work, and one more for each target that waits.

    A group at work counts whole: otherwise short requests that just keep all groups busy would look like no load, and
    groups would go and come.
    """
    needed = load.num_busy + math.ceil(load.waiting_gpu_seconds / settings.target_gpu_seconds)
    return min(max(needed, settings.min_replicas), settings.max_replicas)


def decide(load: Load, settings: ScalingSettings, history: Sequence[Need]) -> tuple[int, tuple[Need, ...]]:
    """Groups that there should be, and the history for the next decision (bounded: one entry a second).

    More are started up to what was needed all through the last `up_delay_s`; groups end down to the most that was
    needed in the last `down_delay_s`, the last one down to `to_zero_delay_s` of nothing.
    """
    history = _record((load.now, needed_replicas(load, settings)), settings, history)
    target = load.num_replicas
    if load.num_replicas == 0:
        return max(history[-1][1], settings.min_replicas), history  # somebody waits for the very first one
    least = min(_within(history, load.now, settings.up_delay_s))
    most = max(_within(history, load.now, settings.down_delay_s))
    if least > target and _reaches_back(history, load.now, settings.up_delay_s):
        target = least
    elif most < target and _reaches_back(history, load.now, settings.down_delay_s):
        target = max(most, 1)
        zero_delay_s = settings.to_zero_delay_s
        if load.num_replicas == 1 and _reaches_back(history, load.now, zero_delay_s):
            target = max(_within(history, load.now, zero_delay_s))
    return min(max(target, settings.min_replicas), settings.max_replicas), history


class WaitingWorkPolicy:
    """`decide` as Ray Serve's custom policy. Serve's own delays must be 0.

    Serve knows how many requests there are, and groups report what one costs on average; of the requests that wait in
    front of an ingress replica it knows no single costs.

    Args:
        default_gpu_seconds: cost of a request before any group has reported: the plan's prediction.
        settings: fields of `ScalingSettings`.
    """

    def __init__(self, default_gpu_seconds: float, **settings: Any) -> None:
        self._default_gpu_seconds = default_gpu_seconds
        self._settings = ScalingSettings(**settings)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Called by Serve's controller with an `AutoscalingContext`."""
        state = context.policy_state
        reported = mean_cost(context.aggregated_metrics)
        cost = state.get("cost", self._default_gpu_seconds) if reported is None else reported
        total = max(context.total_num_requests, 0.0)
        num_busy = min(math.ceil(total), context.current_num_replicas)
        load = Load(
            now=context.current_time,
            waiting_gpu_seconds=max(total - num_busy, 0.0) * cost,
            num_busy=num_busy,
            num_replicas=context.target_num_replicas,
        )
        target, history = decide(load, self._settings, state.get("history", ()))
        return target, {"history": history, "cost": cost}


def mean_cost(metrics: Mapping[str, Mapping[Any, float]] | None) -> float | None:
    """GPU-seconds of a request, over the groups that have reported one; None if none has."""
    costs = [cost for cost in (metrics or {}).get(COST_METRIC, {}).values() if cost > 0]
    return sum(costs) / len(costs) if costs else None


def _record(need: Need, settings: ScalingSettings, history: Sequence[Need]) -> tuple[Need, ...]:
    """Adds a need and drops what is too old for any delay; of the needs of one second the greatest is kept."""
    now, number = need
    window_s = max(settings.up_delay_s, settings.down_delay_s, settings.to_zero_delay_s)
    kept = [entry for entry in history if entry[0] >= now - window_s - 2 * _RESOLUTION_S]
    if kept and now - kept[-1][0] < _RESOLUTION_S:
        return *kept[:-1], (kept[-1][0], max(kept[-1][1], number))
    return *kept, need


def _within(history: Sequence[Need], now: float, delay_s: float) -> list[int]:
    """Needs of the last seconds; the latest is always among them."""
    return [number for at, number in history[:-1] if at >= now - delay_s] + [history[-1][1]]


def _reaches_back(history: Sequence[Need], now: float, delay_s: float) -> bool:
    return history[0][0] <= now - delay_s
