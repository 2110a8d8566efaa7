"""The scaling policy against Serve's default, on a simulated cluster of 1,000 one-group nodes and mixed requests.

    python -m benchmarks.autoscaling_simulation [--hours N] [--folder DIR]

The policies are the real ones: `deployments.autoscaling` as Serve's controller would call it, and Ray Serve's own
`target_ongoing_requests` with its own delays. Simulated are the requests, the groups (one request at a time, first come
first served, a start takes two minutes, and counts as GPU time) and the averaging of Serve's metrics.
"""

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.serve.autoscaling_policy import _apply_delay_logic, replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks.record import keep
from deployments.autoscaling import COST_METRIC, Load, ScalingSettings, WaitingWorkPolicy, decide

NUM_NODES = 1000
START_S = 120.0
PICTURE_S, VIDEO_S, LONG_VIDEO_S = 4.0, 60.0, 600.0
MIX = ((PICTURE_S, 0.90), (VIDEO_S, 0.09), (LONG_VIDEO_S, 0.01))
SCALING: dict[str, Any] = {
    "min_replicas": 10, "max_replicas": NUM_NODES, "target_gpu_seconds": 60.0,
    "up_delay_s": 10.0, "down_delay_s": 300.0, "to_zero_delay_s": 900.0,
}  # fmt: skip
_SMOOTHING = 0.02

Request = tuple[float, float]
"""Arrival and cost, in seconds."""


@dataclass
class Cluster:
    """Groups and what waits for them."""

    idle: int
    now: float = 0.0
    target: int = 0
    draining: int = 0
    starting: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    queue: deque[Request] = field(default_factory=deque)
    waiting_s: float = 0.0
    mean_cost: float = VIDEO_S
    waits: list[float] = field(default_factory=list)
    gpu_seconds: float = 0.0

    @property
    def num_requests(self) -> int:
        return len(self.queue) + len(self.busy)

    @property
    def num_running(self) -> int:
        return self.idle + len(self.busy) - self.draining

    def advance(self, until: float) -> None:
        """Lets starts and work end up to a moment."""
        while True:
            ready = self.starting[0] if self.starting else math.inf
            done = self.busy[0] if self.busy else math.inf
            at = min(ready, done)
            if at > until:
                break
            self._pass(at)
            if ready <= done:
                heapq.heappop(self.starting)
                self.idle += 1
            else:
                heapq.heappop(self.busy)
                if self.draining:
                    self.draining -= 1
                else:
                    self.idle += 1
            self._begin()
        self._pass(until)

    def arrive(self, request: Request) -> None:
        self.advance(request[0])
        self.queue.append(request)
        self.waiting_s += request[1]
        self._begin()

    def scale(self, target: int) -> None:
        """Starts groups; or ends those that are not up yet, then idle ones, then those at work when they are done."""
        self.target = target
        missing = target - (self.num_running + len(self.starting))
        for _ in range(max(missing, 0)):
            if self.draining:
                self.draining -= 1
            else:
                heapq.heappush(self.starting, self.now + START_S)
        surplus = max(-missing, 0)
        dropped = min(surplus, len(self.starting))
        self.starting = sorted(self.starting)[: len(self.starting) - dropped]
        ended = min(surplus - dropped, self.idle)
        self.idle -= ended
        self.draining += surplus - dropped - ended

    def _begin(self) -> None:
        while self.idle and self.queue:
            arrival, cost = self.queue.popleft()
            self.waiting_s -= cost
            self.idle -= 1
            self.waits.append(self.now - arrival)
            self.mean_cost += _SMOOTHING * (cost - self.mean_cost)
            heapq.heappush(self.busy, self.now + cost)

    def _pass(self, at: float) -> None:
        self.gpu_seconds += (at - self.now) * (self.idle + len(self.busy) + len(self.starting))
        self.now = at


Policy = Callable[[Cluster], int]


class ServeDefault:
    """Ray Serve's policy with its default delays and look-back."""

    def __init__(self, target_ongoing_requests: float) -> None:
        self._config = AutoscalingConfig(
            min_replicas=SCALING["min_replicas"], max_replicas=NUM_NODES,
            target_ongoing_requests=target_ongoing_requests,
        )  # fmt: skip
        self._samples: deque[int] = deque(maxlen=int(self._config.look_back_period_s))
        self._state: dict[str, Any] = {}

    def __call__(self, cluster: Cluster) -> int:
        self._samples.append(cluster.num_requests)
        context = SimpleNamespace(
            config=self._config, current_num_replicas=cluster.num_running, target_num_replicas=cluster.target,
            total_num_requests=sum(self._samples) / len(self._samples), policy_state=self._state,
        )  # fmt: skip
        desired, _ = replica_queue_length_autoscaling_policy(context)
        wanted = min(max(math.ceil(desired), self._config.min_replicas), NUM_NODES)
        count, self._state = _apply_delay_logic(wanted, cluster.target, self._config, self._state, _now=cluster.now)
        return int(count)


class WaitingWork:
    """Our policy as it is deployed: the number of requests times what groups report as their mean cost."""

    def __init__(self) -> None:
        self._policy = WaitingWorkPolicy(VIDEO_S, **SCALING)
        self._samples: deque[int] = deque(maxlen=10)
        self._state: dict[str, Any] = {}

    def __call__(self, cluster: Cluster) -> int:
        self._samples.append(cluster.num_requests)
        context = SimpleNamespace(
            policy_state=self._state, aggregated_metrics={COST_METRIC: {"group": cluster.mean_cost}},
            total_num_requests=sum(self._samples) / len(self._samples), current_num_replicas=cluster.num_running,
            target_num_replicas=cluster.target, current_time=cluster.now,
        )  # fmt: skip
        count, self._state = self._policy(context)
        return count


class KnownWork:
    """Our policy, were the cost of each waiting request known to it."""

    def __init__(self) -> None:
        self._settings = ScalingSettings(**SCALING)
        self._history: tuple[tuple[float, int], ...] = ()

    def __call__(self, cluster: Cluster) -> int:
        load = Load(cluster.now, max(cluster.waiting_s, 0.0), len(cluster.busy), cluster.target)
        count, self._history = decide(load, self._settings, self._history)
        return count


POLICIES: dict[str, Callable[[], Policy]] = {
    "Serve, target_ongoing_requests 2 (default)": lambda: ServeDefault(2.0),
    "Serve, target_ongoing_requests 1": lambda: ServeDefault(1.0),
    "waiting work by mean cost (deployed)": WaitingWork,
    "waiting work by known cost": KnownWork,
}


def day(seconds: float, seed: int = 1) -> Iterator[Request]:
    """A load that rises from 10 % to 70 % of the cluster and falls again, all costs mixed."""
    mean = sum(cost * share for cost, share in MIX)
    return _poisson(seconds, lambda at: NUM_NODES * (0.4 - 0.3 * math.cos(2 * math.pi * at / seconds)) / mean, seed)


def bursts(seconds: float, seed: int = 2) -> Iterator[Request]:
    """Pictures for 5 % of the cluster; every half hour 200 videos and 50 long ones at once."""
    random_ = random.Random(seed)
    steady = [(at, PICTURE_S) for at, _ in _poisson(seconds, lambda _: 0.05 * NUM_NODES / PICTURE_S, seed)]
    batches = [
        (start + random_.uniform(0.0, 10.0), cost)
        for start in range(600, int(seconds), 1800)
        for cost in [VIDEO_S] * 200 + [LONG_VIDEO_S] * 50
    ]
    return iter(sorted(steady + batches))


def _poisson(seconds: float, rate: Callable[[float], float], seed: int) -> Iterator[Request]:
    random_ = random.Random(seed)
    costs, shares = zip(*MIX, strict=True)
    at = 0.0
    while (at := at + random_.expovariate(rate(at))) < seconds:
        yield at, random_.choices(costs, shares)[0]


def simulate(policy: Policy, requests: Iterator[Request], *, num_groups: int = SCALING["min_replicas"]) -> Cluster:
    """Runs all requests to their end, asking the policy each second."""
    cluster = Cluster(idle=num_groups, target=num_groups)
    pending = next(requests, None)
    second = 0.0
    while pending is not None or cluster.num_requests:
        second += 1.0
        while pending is not None and pending[0] <= second:
            cluster.arrive(pending)
            pending = next(requests, None)
        cluster.advance(second)
        cluster.scale(policy(cluster))
    return cluster


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Simulates, keeps and prints the rows, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="where the figures are kept")
    options = parser.parse_args(arguments)
    rows = []
    for load in (day, bursts):
        for name, make in POLICIES.items():
            cluster = simulate(make(), load(3600 * options.hours))
            rows.append({"load": load.__name__, "policy": name, **_figures(cluster)})
    keep("autoscaling_simulation", rows, folder=options.folder)
    return rows


def _figures(cluster: Cluster) -> dict[str, Any]:
    waits = sorted(cluster.waits)
    return {
        "requests": len(waits),
        "wait_p50_s": round(waits[len(waits) // 2], 1),
        "wait_p95_s": round(waits[int(0.95 * len(waits))], 1),
        "wait_p99_s": round(waits[int(0.99 * len(waits))], 1),
        "gpu_hours": round(cluster.gpu_seconds / 3600, 1),
    }


if __name__ == "__main__":
    main()
