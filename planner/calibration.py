"""Corrects predictions by measurements of the same checkpoint, GPU type, dtype, shape and execution.

The model's own prediction for the measured configuration is made anew each time, so a measurement outlives changes of
the model. The difference then corrects what is planned:

- the same configuration: measured numbers replace predicted ones;
- the same but for the number of resident blocks, whose bytes are known: the difference of the peaks is added;
- another residency or other degrees: the difference is added where more was measured than predicted (never less: that
  could be another stage's), and steps are scaled where nothing is streamed in either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.checkpoint import Checkpoint
from planner.costs import Workload
from planner.degrees import Degrees
from planner.execution import Execution
from planner.hardware import find_gpu
from planner.measurements import Measurement
from planner.memory import Moments, Placement
from planner.plan import Correction, PlannedShape, Residency
from planner.prediction import Setting
from planner.times import Times

Basis = Literal["same configuration", "other number of resident blocks", "other residency or degrees"]
_BASES: tuple[Basis, ...] = (
    "same configuration",
    "other number of resident blocks",
    "other residency or degrees",
)
Configuration = tuple[tuple[str, Residency, int, int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measurement beside what the model predicts for it.

    Attributes:
        degrees: `(num_ranks, cfg, sequence, fsdp)`.
        excess_bytes: measured less predicted peak, a rank; empty on CPUs.
        measured_step_s: None if no step was measured.
        predicted_step_s: 0 where no rate is known.
    """

    gpu_type: str | None
    execution: Execution
    degrees: tuple[int, int, int, int]
    configuration: Configuration
    excess_bytes: tuple[int, ...]
    measured_step_s: float | None
    predicted_step_s: float


def compare_measurements(
    measurements: Sequence[Measurement], *, checkpoint: Checkpoint, workload: Workload, dtype: str, device: str
) -> tuple[Comparison, ...]:
    """Those measurements that are of this checkpoint, dtype, device and shape, each with the model's prediction."""
    found: list[Comparison] = []
    for measurement in measurements:
        key = measurement.key
        if (key.checkpoint_fingerprint, key.dtype, key.device) != (checkpoint.fingerprint, dtype, device):
            continue
        if key.shape != planned_shape(workload) or set(key.components) != {c.name for c in checkpoint.components}:
            continue
        degrees = Degrees(key.num_ranks, key.cfg_degree, key.sequence_degree, key.fsdp_degree, "measured")
        gpu = find_gpu(key.gpu_type) if key.gpu_type else None
        execution = Execution(key.attention_backends, key.compile, key.decoding)
        setting = Setting(checkpoint, workload, degrees, dtype, device, gpu, key.num_ranks, execution)
        placements = _measured_placements(measurement, checkpoint)
        if placements is None:
            continue
        peaks = setting.trace(placements).gpu_peak_bytes
        excess = tuple(m - p for m, p in zip(measurement.gpu_peak_bytes, peaks, strict=False))
        found.append(
            Comparison(
                gpu_type=key.gpu_type,
                execution=execution,
                degrees=_degree_tuple(degrees),
                configuration=configuration_of(placements),
                excess_bytes=excess,
                measured_step_s=measurement.step_s,
                predicted_step_s=setting.times(placements).step_s,
            )
        )
    return tuple(found)


def planned_shape(workload: Workload) -> PlannedShape:
    """The part of a workload that memory and a step's time depend on."""
    return PlannedShape(
        width=workload.width,
        height=workload.height,
        num_frames=workload.num_frames,
        batch_size=workload.batch_size,
    )


def configuration_of(placements: Sequence[Placement]) -> Configuration:
    """What tells two placements of one checkpoint apart."""
    return tuple(
        (
            p.component.name,
            p.residency,
            p.num_resident_blocks if p.residency is Residency.LAYERWISE else 0,
            p.prefetch_depth if p.residency is Residency.LAYERWISE else 0,
            p.ranks,
        )
        for p in sorted(placements, key=lambda p: p.component.name)
    )


class Calibration:
    """The comparisons that concern one GPU type and execution, applied to options. Without any it changes nothing."""

    def __init__(self, comparisons: Sequence[Comparison], *, gpu_type: str | None, execution: Execution) -> None:
        self._comparisons = [c for c in comparisons if (c.gpu_type, c.execution) == (gpu_type, execution)]

    def correct_memory(
        self, moments: Moments, placements: tuple[Placement, ...], degrees: Degrees
    ) -> tuple[Moments, Correction | None]:
        """The moments with their peaks corrected, and by what; on CPUs nothing is."""
        peaks, basis = self._correct_peaks(moments.gpu_peak_bytes, placements, degrees)
        if basis is None:
            return moments, None
        return _with_peaks(moments, peaks), Correction(
            number="gpu_peak_bytes",
            predicted=float(max(moments.gpu_peak_bytes)),
            corrected=float(max(peaks)),
            basis=basis,
        )

    def correct_peaks(
        self, gpu_peak_bytes: tuple[int, ...], placements: tuple[Placement, ...], degrees: Degrees
    ) -> tuple[int, ...]:
        """The peaks that `correct_memory` gives, without its timeline."""
        return self._correct_peaks(gpu_peak_bytes, placements, degrees)[0]

    def _correct_peaks(
        self, gpu_peak_bytes: tuple[int, ...], placements: tuple[Placement, ...], degrees: Degrees
    ) -> tuple[tuple[int, ...], Basis | None]:
        basis, matches = self._match(placements, degrees)
        excesses = [c.excess_bytes for c in matches if c.excess_bytes]
        if basis is None or not excesses or not any(gpu_peak_bytes):
            return gpu_peak_bytes, None
        if basis == "other residency or degrees":
            most = max(0, *(max(excess) for excess in excesses))
            excess = (most,) * degrees.num_ranks
        else:
            excess = tuple(max(e[rank] for e in excesses) for rank in range(min(map(len, excesses))))
        if len(excess) != degrees.num_ranks or not any(excess):
            return gpu_peak_bytes, None
        return tuple(max(1, peak + more) for peak, more in zip(gpu_peak_bytes, excess, strict=True)), basis

    def correct_times(
        self, times: Times, placements: tuple[Placement, ...], degrees: Degrees, *, num_steps: int
    ) -> tuple[Times, Correction | None]:
        """The times with the step corrected, and with it the request; and by what."""
        basis, matches = self._match(placements, degrees)
        if basis == "same configuration":
            measured = [c.measured_step_s for c in matches if c.measured_step_s is not None]
            step_s = measured[0] if measured else None
        else:
            step_s = self._scaled_step(times, placements)
            basis = "other residency or degrees"
        if step_s is None or step_s == times.step_s:
            return times, None
        request_s = max(0.0, times.ranking_s + (step_s - times.step_s) * num_steps)
        corrected = replace(times, step_s=step_s, ranking_s=request_s, step_known=True)
        predicted = times.step_s if times.known else None
        return corrected, Correction(number="step_s", predicted=predicted, corrected=round(step_s, 6), basis=basis)

    def _scaled_step(self, times: Times, placements: tuple[Placement, ...]) -> float | None:
        if not times.known or _streams(configuration_of(placements)):
            return None
        ratios = sorted(
            c.measured_step_s / c.predicted_step_s
            for c in self._comparisons
            if c.measured_step_s is not None and c.predicted_step_s > 0 and not _streams(c.configuration)
        )
        return times.step_s * ratios[len(ratios) // 2] if ratios else None

    def _match(self, placements: tuple[Placement, ...], degrees: Degrees) -> tuple[Basis | None, list[Comparison]]:
        """The closest measurements that there are, and how close they are."""
        if not self._comparisons:
            return None, []
        wanted, wanted_degrees = configuration_of(placements), _degree_tuple(degrees)
        alike = [c for c in self._comparisons if c.degrees == wanted_degrees]
        same = [c for c in alike if c.configuration == wanted]
        if same:
            return _BASES[0], same
        but_for_blocks = [c for c in alike if _without_blocks(c.configuration) == _without_blocks(wanted)]
        if but_for_blocks:
            return _BASES[1], but_for_blocks
        return _BASES[2], self._comparisons


def _measured_placements(measurement: Measurement, checkpoint: Checkpoint) -> tuple[Placement, ...] | None:
    """The measured configuration as placements; None if the checkpoint cannot be placed so."""
    placements: list[Placement] = []
    for component in checkpoint.components:
        measured = measurement.key.components[component.name]
        streamed = measured.residency is Residency.LAYERWISE
        if streamed and not 0 <= measured.num_resident_blocks <= len(component.blocks):
            return None
        if (streamed and not component.blocks) or any(rank >= measurement.key.num_ranks for rank in measured.ranks):
            return None
        placements.append(
            Placement(
                component=component,
                residency=measured.residency,
                ranks=measured.ranks,
                num_resident_blocks=measured.num_resident_blocks if streamed else 0,
                prefetch_depth=max(1, measured.prefetch_depth),
            )
        )
    return tuple(placements)


def _with_peaks(moments: Moments, peaks: tuple[int, ...]) -> Moments:
    """The timeline with each rank's peak moved: what was at the peak is at the new one, nothing lies above it."""

    def move(rank: int, num_bytes: int) -> int:
        return peaks[rank] if num_bytes == moments.gpu_peak_bytes[rank] else min(num_bytes, peaks[rank])

    timeline = tuple(
        moment.model_copy(update={"gpu_bytes": tuple(move(rank, n) for rank, n in enumerate(moment.gpu_bytes))})
        for moment in moments.timeline
    )
    return Moments(timeline, peaks, moments.host_peak_bytes)


def _streams(configuration: Configuration) -> bool:
    return any(residency is Residency.LAYERWISE for _, residency, *_ in configuration)


def _without_blocks(configuration: Configuration) -> tuple[object, ...]:
    return tuple((name, residency, prefetch, ranks) for name, residency, _, prefetch, ranks in configuration)


def _degree_tuple(degrees: Degrees) -> tuple[int, int, int, int]:
    return degrees.num_ranks, degrees.cfg, degrees.sequence, degrees.fsdp
