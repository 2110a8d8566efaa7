"""Groups by the whole path (planner, placement group, rank actors) and what their requests take."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.group_checkpoints import Name, Subject, subject
from benchmarks.rank_probes import (
    allocated_bytes,
    denoiser_bytes,
    environment,
    fill_weights,
    forget_peak,
    probe,
)
from planner.checkpoint import read_checkpoint
from planner.cluster import Cluster, cluster_from_ray_nodes, cluster_of_this_machine
from planner.errors import ClusterError
from planner.plan import Plan, PlanRequest, ShardUnit
from planner.search import plan_group
from workers.call_pace import CallDeadlines
from workers.calls import GenerateCall, GenerateResult
from workers.group import WorkerGroup

SAFE_ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
"""Keeps NVLink multicast off: on a shared host a program that uses it can put the GPUs out of service."""

ALONE = {"num_ranks": 1, "cfg_degree": 1, "sequence_degree": 1, "fsdp_degree": 1}
LANES = {"num_ranks": 2, "cfg_degree": 2, "sequence_degree": 1, "fsdp_degree": 1}
SHARDS = {"num_ranks": 2, "cfg_degree": 1, "sequence_degree": 1, "fsdp_degree": 2}
LANES_AND_SHARDS = {"num_ranks": 2, "cfg_degree": 2, "sequence_degree": 1, "fsdp_degree": 2}
SEQUENCE = {"num_ranks": 2, "cfg_degree": 1, "sequence_degree": 2, "fsdp_degree": 1}
UNCOMPILED = {"compile": "none"}
EAGER = {"compile": "none", "attention_backend": "native"}


@dataclass(frozen=True, slots=True)
class Runs:
    """Requests whose times are taken: seconds a step are the difference of two lengths, so encoding cancels out.

    Attributes:
        guidance: 1 makes one call a step, more makes two.
        short: steps of the shorter request.
        long: steps of the longer one, whose latents are compared.
        decodes: whether whole requests, with decoding, are timed as well.
    """

    guidance: float = 5.0
    short: int = 2
    long: int = 6
    decodes: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """A group to start, and its requests."""

    subject: Name
    degrees: Mapping[str, Any]
    runs: tuple[Runs, ...]
    choices: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    shard_by: ShardUnit | None = None

    @property
    def label(self) -> str:
        degrees = ", ".join(f"{key.removesuffix('_degree')} {self.degrees[key]}" for key in
                            ("cfg_degree", "sequence_degree", "fsdp_degree") if self.degrees[key] > 1)  # fmt: skip
        units = "" if self.shard_by is None else f"by {self.shard_by}"
        chosen = ", ".join(f"{key} {value}" for key, value in self.choices.items() if key != "residency")
        return ", ".join(part for part in (self.subject, self.dtype, degrees or "1 GPU", units, chosen) if part)


@dataclass(slots=True)
class Outcome:
    """What a group did. Bytes are of device memory, by rank; zeros on a CPU."""

    label: str
    start_s: float = 0.0
    plan: str = ""
    step_s: dict[float, float] = field(default_factory=dict)
    latents: dict[float, torch.Tensor] = field(default_factory=dict)
    num_steps: dict[float, int] = field(default_factory=dict)
    decoded_s: float | None = None
    at_rest_bytes: list[int] = field(default_factory=list)
    peak_bytes: dict[float, list[int]] = field(default_factory=dict)
    denoiser_bytes: list[int] = field(default_factory=list)
    read_bytes: tuple[int, ...] = ()
    rows: list[int] = field(default_factory=list)

    def request_s(self, *, guidance: float, num_steps: int) -> float | None:
        """Seconds of a whole request of so many steps: one with one step as measured, the others at the step's pace."""
        return None if self.decoded_s is None else self.decoded_s + (num_steps - 1) * self.step_s[guidance]


class Bench:
    """Where groups run: the machine's device, the scratch folder, and the groups that are alive."""

    def __init__(self, scratch: Path, *, is_small: bool) -> None:
        self.scratch = scratch
        self.is_small = is_small
        self.device = "cpu" if is_small else "cuda"
        self.epoch = 0
        self._alive: set[WorkerGroup] = set()
        self._writing = threading.Lock()
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line of progress with the seconds since the beginning."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def subject(self, name: Name) -> Subject:
        return subject(name, is_small=self.is_small)

    def plan(self, spec: Spec) -> Plan:
        """The planner's answer for the live cluster."""
        what = self.subject(spec.subject)
        dtype = "float32" if self.is_small else spec.dtype
        with self._writing:
            folder = what.write(self.scratch, dtype=getattr(torch, dtype))
        wishes: dict[str, Any] = {"device": self.device, "dtype": dtype, **what.shape, **spec.degrees, **spec.choices}
        if self.is_small:
            wishes["cpus_per_rank"] = 1
        if spec.degrees["fsdp_degree"] == 1:
            wishes.setdefault("residency", {"transformer": {"residency": "resident"}})
        elif spec.shard_by is not None:
            wishes["residency"] = {"transformer": {"residency": "sharded", "shard_by": spec.shard_by}}
        return plan_group(read_checkpoint(str(folder)), _live_cluster(), PlanRequest.model_validate(wishes))

    @contextmanager
    def group(self, spec: Spec, *, deadlines: CallDeadlines | None = None) -> Iterator[WorkerGroup]:
        """A started group with random weights (the shapes checkpoint keeps its own); gone afterwards."""
        group = self.start(self.plan(spec), has_weights=self.subject(spec.subject).request is None, deadlines=deadlines)
        try:
            yield group
        finally:
            self.stop(group)

    def start(self, plan: Plan, *, has_weights: bool, deadlines: CallDeadlines | None = None) -> WorkerGroup:
        """Starts a group and makes sure that multicast is off in every rank."""
        epoch = self.epoch
        deadlines = deadlines or CallDeadlines(first_s=120.0, floor_s=45.0)
        group = WorkerGroup.start(plan, timeout_s=400.0 if self.is_small else 120.0, deadlines=deadlines)
        self._alive.add(group)
        if epoch != self.epoch:
            self.stop(group)
        self.check(epoch)
        for found in probe(group, environment, tuple(SAFE_ENVIRONMENT)):
            assert found == SAFE_ENVIRONMENT, f"a rank lacks what keeps NVLink multicast off: {found}"
        probe(group, forget_peak if has_weights else fill_weights)
        return group

    def stop(self, group: WorkerGroup) -> None:
        self._alive.discard(group)
        group.shutdown()

    def check(self, epoch: int) -> None:
        """Raises if the section that began in this epoch is over: it must start nothing more."""
        if epoch != self.epoch:
            raise TimeoutError("the section ran out of time")

    def stop_all(self) -> None:
        """Ends what a section has left, and begins a new epoch."""
        self.epoch += 1
        for group in list(self._alive):
            self.stop(group)

    def measure(self, spec: Spec, *, also: Callable[[WorkerGroup], None] | None = None) -> Outcome:
        """Starts the group, runs its requests (and what `also` does with it), ends it."""
        outcome = Outcome(spec.label)
        what = self.subject(spec.subject)
        began = time.monotonic()
        with self.group(spec) as group:
            outcome.start_s = time.monotonic() - began
            outcome.plan = _describe(group.plan)
            outcome.read_bytes = group.describe().weight_bytes_read
            outcome.at_rest_bytes = [now for now, _ in probe(group, allocated_bytes)]
            outcome.denoiser_bytes = probe(group, denoiser_bytes)
            self.say(f"{spec.label}: started in {outcome.start_s:.1f} s ({_parts(group)}); {outcome.plan}")
            for runs in spec.runs:
                _time(group, what, runs, outcome)
                self.say(f"{spec.label}: {outcome.step_s[runs.guidance]:.4f} s a step at guidance {runs.guidance:g}")
            if also is not None:
                also(group)
        return outcome


def request_seconds(
    group: WorkerGroup, what: Subject, *, guidance: float, num_steps: int, decodes: bool
) -> tuple[float, GenerateResult]:
    """Wall seconds of one request with seed 0, to its result on the host; latents unless it decodes."""
    arguments = {**what.arguments, what.guidance: guidance, "num_inference_steps": num_steps}
    if not decodes:
        arguments["output_type"] = "latent"
    began = time.monotonic()
    result = group.generate(GenerateCall(arguments, seed=0))
    return time.monotonic() - began, result


def _time(group: WorkerGroup, what: Subject, runs: Runs, outcome: Outcome) -> None:
    # With lanes the first step learns the signature on the leader alone; from the second on all of them have compiled.
    num_lanes, is_first = group.plan.group.cfg_degree, not outcome.step_s
    if is_first or num_lanes > 1:
        request_seconds(group, what, guidance=runs.guidance, num_steps=num_lanes, decodes=runs.decodes)
    probe(group, forget_peak)
    short_s, _ = request_seconds(group, what, guidance=runs.guidance, num_steps=runs.short, decodes=False)
    long_s, result = request_seconds(group, what, guidance=runs.guidance, num_steps=runs.long, decodes=False)
    outcome.step_s[runs.guidance] = (long_s - short_s) / (runs.long - runs.short)
    outcome.latents[runs.guidance], outcome.num_steps[runs.guidance] = result.output, runs.long
    outcome.peak_bytes[runs.guidance] = [peak for _, peak in probe(group, allocated_bytes)]
    outcome.rows = [stats.denoiser_rows for stats in result.ranks]
    if runs.decodes:
        outcome.decoded_s, _ = request_seconds(group, what, guidance=runs.guidance, num_steps=1, decodes=True)


def difference(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """Equal to the bit, or by how much at most, as a share of the largest value."""
    one, other = one.float(), other.float()
    largest = float(one.abs().max())
    return {
        "finite": bool(one.isfinite().all() and other.isfinite().all()),
        "equal": torch.equal(one, other),
        "max_difference": float((one - other).abs().max()) / max(largest, 1e-30),
    }


def _parts(group: WorkerGroup) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in group.start_seconds.items())


def _describe(plan: Plan) -> str:
    places = ", ".join(f"{component.name}={component.residency}" for component in plan.components)
    return f"{places}; compile {plan.compile}; attention {'/'.join(plan.attention_backends)}"


def _live_cluster() -> Cluster:
    """As the planner actor asks; where Ray does not say the GPU's type, as nvidia-smi does."""
    try:
        return cluster_from_ray_nodes(ray.nodes())
    except ClusterError:
        return cluster_of_this_machine()
