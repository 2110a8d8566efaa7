"""The plan: everything that is decided before an actor starts, and the request it answers.

These models leave the planner (HTTP, command line, actors), so they are pydantic, frozen, and refuse unknown keys.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Frozen(BaseModel):
    """Base of the planner's public models: immutable, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mode(StrEnum):
    """What the plan optimises."""

    SPEED = "speed"
    AUTO = "auto"
    MEMORY = "memory"


class Residency(StrEnum):
    """Where a component's weights live."""

    RESIDENT = "resident"
    LAYERWISE = "layerwise"
    OFFLOAD = "offload"
    SHARDED = "sharded"


class AttentionBackend(StrEnum):
    """Which kernel computes attention: `native` is torch's own choice, the others are one of its kernels."""

    NATIVE = "native"
    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


class Decoding(StrEnum):
    """How autoencoders decode: a whole frame at once, or in overlapping tiles, which takes less memory.

    Tiles are blended where they overlap, so that a picture larger than a tile is not the same to the bit.
    """

    WHOLE = "whole"
    TILES = "tiles"


class Compilation(StrEnum):
    """What of a denoiser is compiled."""

    NONE = "none"
    BLOCKS = "blocks"


class ComponentKind(StrEnum):
    """What a component is to the pipeline; the order of the members is their order of loading at equal payload.

    A ControlNet is whatever feeds the denoiser at each step.
    """

    DENOISER = "denoiser"
    TEXT_ENCODER = "text_encoder"
    IMAGE_ENCODER = "image_encoder"
    VAE = "vae"
    CONTROLNET = "controlnet"
    OTHER = "other"


class StepCache(StrEnum):
    """diffusers' caches that reuse results of earlier denoising steps."""

    FIRST_BLOCK = "first_block"
    TAYLOR_SEER = "taylor_seer"
    MAG = "mag"
    PYRAMID_ATTENTION_BROADCAST = "pyramid_attention_broadcast"


class ShardUnit(StrEnum):
    """What is gathered at once of a sharded component: whole blocks, or their parts (attention, feed-forward).

    Parts need less memory and more calls a step; a denoiser that is compiled is sharded by blocks.
    """

    BLOCKS = "blocks"
    PARTS = "parts"


class ResidencyChoice(Frozen):
    """A user's explicit choice for one component, e.g. `layerwise:12` or `sharded:parts`."""

    residency: Residency
    num_resident_blocks: int | None = Field(default=None, ge=0)
    shard_by: ShardUnit | None = None


class PlanRequest(Frozen):
    """What the user asks of the planner. None means: the planner decides.

    Attributes:
        forbid: residencies that a component must not have.
        share_gpu: all ranks on one GPU (for tests).
        step_cache: a cache that the denoiser is to run with; restricts its residency.
        component_ranks: the rank on which a whole component (encoder, autoencoder) lives; the leader, 0, if not stated.
    """

    mode: Mode = Mode.AUTO
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    variant: str | None = None
    num_ranks: int | None = Field(default=None, ge=1)
    cfg_degree: int | None = Field(default=None, ge=1)
    sequence_degree: int | None = Field(default=None, ge=1)
    fsdp_degree: int | None = Field(default=None, ge=1)
    residency: dict[str, ResidencyChoice] = Field(default_factory=dict)
    forbid: dict[str, tuple[Residency, ...]] = Field(default_factory=dict)
    prefetch_depth: int | None = Field(default=None, ge=1)
    attention_backend: Literal["auto"] | AttentionBackend = "auto"
    compile: Literal["auto"] | Compilation = "auto"
    decoding: Literal["auto"] | Decoding = "auto"
    step_cache: StepCache | None = None
    component_ranks: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    share_gpu: bool = False
    cpus_per_rank: float | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    num_frames: int | None = Field(default=None, ge=1)
    num_inference_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1)


class ServingDefaults(Frozen):
    """Defaults that the checkpoint recommends (`heliograph.json` beside `model_index.json`); absent ones are None."""

    width: int | None = Field(default=None, ge=1, le=2**16)
    height: int | None = Field(default=None, ge=1, le=2**16)
    num_inference_steps: int | None = Field(default=None, ge=1, le=10_000)
    guidance_scale: float | None = Field(default=None, allow_inf_nan=False)
    num_frames: int | None = Field(default=None, ge=1, le=2**16)
    fps: int | None = Field(default=None, ge=1, le=1000)


class ComponentPlan(Frozen):
    """One component with weights: what it is, where it goes, when it loads, and why."""

    name: str
    library: Literal["diffusers", "transformers"]
    class_name: str
    kind: ComponentKind
    payload_bytes: int
    num_parameters: int
    num_blocks: int
    block_rule: str | None
    residency: Residency
    num_resident_blocks: int | None
    prefetch_depth: int | None
    shard_by: ShardUnit | None = None
    ranks: tuple[int, ...]
    load_order: int
    reason: str


class GroupPlan(Frozen):
    """One copy of the model on its ranks.

    A lane is `num_ranks // cfg_degree` consecutive ranks that together run one denoiser call; `sequence_degree` of
    them split the sequence. An FSDP shard group is `fsdp_degree` consecutive ranks, and may span lanes.
    `bundles[0]` is the coordinator's, `bundles[1 + world_rank]` a rank's; nodes of ranks must have `node_labels`.
    `max_groups` of them fit into the cluster that was planned for, if nothing else runs there.
    """

    num_ranks: int
    cfg_degree: int
    sequence_degree: int
    fsdp_degree: int
    bundles: tuple[dict[str, float], ...]
    strategy: Literal["STRICT_PACK", "PACK", "STRICT_SPREAD", "SPREAD"]
    node_labels: dict[str, str] = Field(default_factory=dict)
    max_groups: int | None = None
    share_gpu: bool = False


class MemoryMoment(Frozen):
    """Predicted memory in one stage: device bytes a rank, host bytes of the fullest node."""

    stage: str
    gpu_bytes: tuple[int, ...]
    host_bytes: int


class MemoryPlan(Frozen):
    """Predicted memory through loading, encoding, denoising and decoding. On CPU groups the "gpu" figures are zero."""

    gpu_peak_bytes: tuple[int, ...]
    gpu_capacity_bytes: tuple[int, ...]
    host_peak_bytes: int
    host_capacity_bytes: int
    timeline: tuple[MemoryMoment, ...]


class PlannedShape(Frozen):
    """The shape that memory and times are predicted for."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    num_frames: int = Field(ge=1)
    batch_size: int = Field(ge=1)


class Correction(Frozen):
    """A predicted number that measurements of running groups corrected.

    Attributes:
        number: its name in the plan; a corrected step corrects the request's seconds too.
        predicted: what the model said; None if it had no rates.
        corrected: what stands in the plan: bytes of the fullest rank, or seconds.
        basis: how close the measured configuration is to the planned one.
    """

    number: Literal["gpu_peak_bytes", "step_s"]
    predicted: float | None
    corrected: float
    basis: Literal["same configuration", "other number of resident blocks", "other residency or degrees"]


class PredictedTimes(Frozen):
    """Predicted seconds; None where no rate is known for the hardware."""

    load_s: float | None
    step_s: float | None
    request_s: float | None


class RejectedOption(Frozen):
    """An alternative and the number that ruled it out."""

    option: str
    reason: str


class Plan(Frozen):
    """A feasible answer. Same checkpoint, cluster and request give the same plan to the byte.

    Attributes:
        attention_backends: for the denoisers, in this order: the first that works on the rank's device is taken. One
            alone is the user's choice, and an error where it does not work.
        compile: what of the denoisers is compiled.
        decoding: whether autoencoders decode whole frames or tiles.
        fallbacks: whole assignments (choice by component) that need less pinned host memory, best first: what a rank
            takes where the system refuses to pin.
    """

    schema_version: int = SCHEMA_VERSION
    feasible: Literal[True] = True
    checkpoint: str
    checkpoint_fingerprint: str
    pipeline_class: str
    mode: Mode
    device: Literal["cpu", "cuda"]
    gpu_type: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"]
    variant: str | None
    step_cache: StepCache | None = None
    shape: PlannedShape | None = None
    payload_bytes: int
    components: tuple[ComponentPlan, ...]
    group: GroupPlan
    memory: MemoryPlan
    predicted: PredictedTimes
    corrections: tuple[Correction, ...] = ()
    defaults: ServingDefaults
    rejected: tuple[RejectedOption, ...]
    fingerprint: str
    attention_backends: tuple[AttentionBackend, ...] = (AttentionBackend.NATIVE,)
    compile: Compilation = Compilation.NONE
    decoding: Decoding = Decoding.WHOLE
    fallbacks: tuple[dict[str, ResidencyChoice], ...] = ()

    def label_selectors(self) -> list[dict[str, str]]:
        """For each bundle, as Ray's placement groups take them. The coordinator may be on any node."""
        return [{}, *(dict(self.group.node_labels) for _ in range(self.group.num_ranks))]

    def ranks_of_remote_components(self) -> dict[str, int]:
        """World rank of each component that the leader, rank 0, does not hold itself, by name."""
        return {component.name: component.ranks[0] for component in self.components if 0 not in component.ranks}


class InfeasibleReport(Frozen):
    """The answer when nothing fits: the same names as `Plan` where they are known, and why each option fell."""

    schema_version: int = SCHEMA_VERSION
    feasible: Literal[False] = False
    checkpoint: str
    pipeline_class: str
    mode: Mode
    payload_bytes: int
    message: str
    rejected: tuple[RejectedOption, ...]
