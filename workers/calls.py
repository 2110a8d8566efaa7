"""What goes in and out of a group: a call, its progress, its result. No torch here: coordinators import this module."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from planner.plan import Residency

Stage = Literal["encode", "denoise", "decode"]
OutputKind = Literal["image", "video", "latent"]


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One run of the pipeline.

    Attributes:
        arguments: keyword arguments of the diffusers pipeline's `__call__`, passed as they are (tensors allowed).
            `generator` is made from `seed`; do not pass one.
        seed: seed of every random number of the call. None: the leader draws one; the result says which.
        request_id: names the call for `WorkerGroup.cancel`.
        deadline_s: seconds from the start of the run after which the call ends with `DeadlineExceededError`.
        flow_shift: shift of the schedule for this call, where `GroupDescription.takes_flow_shift`.
        num_previews: pictures of the unfinished work to show on the way, at evenly spread steps.
    """

    arguments: Mapping[str, Any]
    seed: int | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    deadline_s: float | None = None
    flow_shift: float | None = None
    num_previews: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture as it looks after `step` of the schedule, (H, W, 3) uint8; `index` counts a call's previews from 0."""

    pixels: Any
    index: int
    step: int


@dataclass(frozen=True, slots=True)
class Progress:
    """One event of a running call. `step` counts finished scheduler steps, from 0."""

    stage: Stage
    step: int
    num_steps: int | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class RankStats:
    """What one rank did in a call; bytes are since the group's start.

    Every rank of a lane counts its lane's calls and rows, whatever share of their tokens or weights it has.

    Attributes:
        denoiser_calls: calls of denoisers whose result was used (a rank that only takes part in collectives has none).
        denoiser_rows: the same times batch rows.
        peak_bytes: of the allocator on a GPU, resident host memory on a CPU.
        component_rows: calls times batch rows of each component that the leader calls through the seam, ControlNets
            and sharded encoders too.
        device_used_bytes: of the rank's whole device at the end of the call, as its driver says: with NCCL's buffers,
            CUDA's own memory, and other processes'. None on a CPU.
        num_graphs: that compiled blocks have; `num_graph_breaks` and `graph_break_reasons` say how whole they are.
    """

    world_rank: int
    denoiser_calls: int
    denoiser_rows: int
    weight_bytes_read: int
    peak_bytes: int
    component_rows: Mapping[str, int] = field(default_factory=dict)
    device_used_bytes: int | None = None
    num_graphs: int = 0
    num_graph_breaks: int = 0
    graph_break_reasons: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SeamStats:
    """Calls of a request that were not divided among the lanes, though the group has several.

    Attributes:
        learnt_signatures: ran serially because calls of this shape were new; a second request has none.
        local_calls: could not leave the leader (arguments that cannot be sent, or that hold state).
        uncut_signatures: batched calls found to give another result when cut; they run whole from then on.
    """

    learnt_signatures: int = 0
    local_calls: int = 0
    uncut_signatures: int = 0


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What the pipeline made.

    Attributes:
        output: uint8 numpy array, images `(B, H, W, 3)` or videos `(B, F, H, W, 3)`; for `output_type="latent"` the
            pipeline's tensor on the CPU.
        output_kind: which of the three.
        seed: the seed that was used.
        stage_seconds: wall seconds of encode, denoise and decode.
        ranks: one entry a rank, in order.
        seam: what ran serially.
        num_previews: shown on the way.
        num_failed_previews: asked for, and not shown; the log says why.
    """

    output: Any
    output_kind: OutputKind
    seed: int
    stage_seconds: Mapping[str, float]
    ranks: tuple[RankStats, ...]
    seam: SeamStats = field(default_factory=SeamStats)
    num_previews: int = 0
    num_failed_previews: int = 0


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """What a started group can do, as its leader's pipeline says.

    Attributes:
        pipeline_class: class name of the diffusers pipeline.
        accepted_arguments: names that the pipeline's `__call__` takes.
        makes_video: True if it takes `num_frames`; with `num_frames=1` such a pipeline makes a picture.
        size_multiple: width and height must be multiples of this many pixels.
        load_seconds: seconds a component took to load on the slowest rank.
        weight_bytes_read: bytes of weights read by each rank.
        takes_flow_shift: whether a call may set the shift of the schedule.
        shows_previews: whether a call may ask for `num_previews`; whoever started the group finds it out by one.
    """

    pipeline_class: str
    accepted_arguments: tuple[str, ...]
    makes_video: bool
    size_multiple: int
    load_seconds: Mapping[str, float]
    weight_bytes_read: tuple[int, ...]
    takes_flow_shift: bool = False
    shows_previews: bool = False


@dataclass(frozen=True, slots=True)
class ComponentLoaded:
    """One component is in place on one rank.

    Attributes:
        residency: where it is.
        fallback_reason: why it is not where the plan wanted it first; None if it is.
    """

    world_rank: int
    name: str
    bytes_read: int
    seconds: float
    residency: Residency
    fallback_reason: str | None = None

    def __str__(self) -> str:
        planned = f", {self.residency} instead of as planned: {self.fallback_reason}" if self.fallback_reason else ""
        return (
            f"rank {self.world_rank}: {self.name} in place, {self.bytes_read / 2**20:.1f} MiB "
            f"in {self.seconds:.2f} s{planned}"
        )
