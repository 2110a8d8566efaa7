"""What running groups measured: the record that profiles keep, and that corrects predictions."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from planner.plan import AttentionBackend, Compilation, Decoding, Frozen, Plan, PlannedShape, Residency

MEASUREMENT_SCHEMA_VERSION: Final = 2
"""Version 1 said neither attention kernels nor compilation; its profiles are not used."""
MAX_STEP_SAMPLES = 8
MAX_RANKS = 1024

_Bytes = Annotated[int, Field(ge=1, lt=2**50)]
_Seconds = Annotated[float, Field(gt=0, lt=86_400, allow_inf_nan=False)]


class MeasuredComponent(Frozen):
    """How one component was placed while it was measured."""

    residency: Residency
    num_resident_blocks: int = Field(default=0, ge=0)
    prefetch_depth: int = Field(default=0, ge=0)
    ranks: tuple[int, ...] = Field(max_length=MAX_RANKS)


class MeasurementKey(Frozen):
    """What was running. Two measurements with equal keys are of the same thing."""

    checkpoint_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    device: Literal["cpu", "cuda"]
    gpu_type: str | None = Field(default=None, max_length=100)
    dtype: Literal["float32", "bfloat16", "float16"]
    shape: PlannedShape
    num_ranks: int = Field(ge=1, le=MAX_RANKS)
    cfg_degree: int = Field(ge=1, le=MAX_RANKS)
    sequence_degree: int = Field(ge=1, le=MAX_RANKS)
    fsdp_degree: int = Field(ge=1, le=MAX_RANKS)
    attention_backends: tuple[AttentionBackend, ...] = Field(max_length=len(AttentionBackend))
    compile: Compilation
    decoding: Decoding = Decoding.WHOLE
    components: Mapping[str, MeasuredComponent] = Field(max_length=64)


class Measurement(Frozen):
    """Peaks and step times of one thing, over all reports of it.

    Attributes:
        gpu_peak_bytes: highest peak of allocated device memory, a rank; empty on CPUs.
        step_samples_s: seconds a denoising step, the latest last.
        num_reports: reports that this record sums up.
        updated_at: seconds since the epoch of the last one.
    """

    schema_version: Literal[2] = MEASUREMENT_SCHEMA_VERSION
    key: MeasurementKey
    gpu_peak_bytes: tuple[_Bytes, ...] = Field(default=(), max_length=MAX_RANKS)
    step_samples_s: tuple[_Seconds, ...] = Field(default=(), max_length=MAX_STEP_SAMPLES)
    num_reports: int = Field(default=1, ge=1)
    updated_at: float = Field(ge=0, allow_inf_nan=False)

    @property
    def step_s(self) -> float | None:
        """The median of the step times; None if none was measured."""
        ordered = sorted(self.step_samples_s)
        return ordered[len(ordered) // 2] if ordered else None


def measurement_key(plan: Plan, *, shape: PlannedShape | None = None) -> MeasurementKey | None:
    """What runs when a plan runs; None for plans made by hand, which say neither shape nor checkpoint.

    Args:
        shape: what was really made; the plan's own shape if not given.
    """
    if plan.shape is None:
        return None
    return MeasurementKey(
        checkpoint_fingerprint=plan.checkpoint_fingerprint,
        device=plan.device,
        gpu_type=plan.gpu_type,
        dtype=plan.dtype,
        shape=shape or plan.shape,
        num_ranks=plan.group.num_ranks,
        cfg_degree=plan.group.cfg_degree,
        sequence_degree=plan.group.sequence_degree,
        fsdp_degree=plan.group.fsdp_degree,
        attention_backends=plan.attention_backends,
        compile=plan.compile,
        decoding=plan.decoding,
        components={
            component.name: MeasuredComponent(
                residency=component.residency,
                num_resident_blocks=component.num_resident_blocks or 0,
                prefetch_depth=component.prefetch_depth or 0,
                ranks=component.ranks,
            )
            for component in sorted(plan.components, key=lambda component: component.name)
        },
    )


def merge_measurements(before: Measurement | None, new: Measurement) -> Measurement:
    """Both as one: the higher peaks, the latest step times."""
    if before is None or len(before.gpu_peak_bytes) != len(new.gpu_peak_bytes):
        return new
    peaks = tuple(max(pair) for pair in zip(before.gpu_peak_bytes, new.gpu_peak_bytes, strict=True))
    samples = (*before.step_samples_s, *new.step_samples_s)[-MAX_STEP_SAMPLES:]
    return new.model_copy(
        update={"gpu_peak_bytes": peaks, "step_samples_s": samples, "num_reports": before.num_reports + new.num_reports}
    )
