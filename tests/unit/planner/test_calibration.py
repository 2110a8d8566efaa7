"""Measurements correct predictions: what is the same, what is near, and what is another thing."""

from pathlib import Path
from typing import Any

import pytest

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.errors import InfeasiblePlanError
from planner.measurements import Measurement, MeasurementKey, measurement_key, merge_measurements
from planner.plan import Decoding, Mode, Plan, PlanRequest, Residency, ResidencyChoice
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

SHAPES: dict[str, Any] = {"width": 832, "height": 480, "num_frames": 17, "num_inference_steps": 10}
H100 = cluster_from_flags(gpus_per_node=2, gpu_type="H100", gpu_memory_gib=40, host_memory_gib=512)
ONE = PlanRequest(num_ranks=1, mode=Mode.SPEED, **SHAPES)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A denoiser of 40 blocks of 256 MiB and a text encoder of 6 GiB; sparse."""
    folder = tmp_path_factory.mktemp("wan")
    return read_checkpoint(str(write_wan(folder, num_layers=40, width=8192, encoder_layers=24)))


def measured(plan: Plan, *, excess_gib: float = 0.0, step_s: float | None = None, **changes: Any) -> Measurement:
    """What a group of this plan would report, had it taken so much more than predicted."""
    key = measurement_key(plan)
    assert key is not None
    on_gpus = plan.device == "cuda"
    peaks = tuple(int(peak + excess_gib * GIB) for peak in plan.memory.gpu_peak_bytes) if on_gpus else ()
    return Measurement(
        key=key.model_copy(update=changes),
        gpu_peak_bytes=peaks,
        step_samples_s=(step_s,) if step_s else (),
        updated_at=1.0,
    )


def gpu_peak(plan: Plan) -> int:
    return max(plan.memory.gpu_peak_bytes)


@pytest.mark.parametrize("excess_gib", [1.5, -1.5])
def test_same_configuration_takes_the_measured_numbers(wan: Checkpoint, excess_gib: float) -> None:
    predicted = plan_group(wan, H100, ONE)
    assert predicted.corrections == ()
    plan = plan_group(wan, H100, ONE, measurements=[measured(predicted, excess_gib=excess_gib, step_s=0.5)])
    assert gpu_peak(plan) == gpu_peak(predicted) + int(excess_gib * GIB)
    assert max(max(moment.gpu_bytes) for moment in plan.memory.timeline) == gpu_peak(plan)
    assert plan.predicted.step_s == 0.5
    assert predicted.predicted.step_s is not None
    assert predicted.predicted.request_s is not None
    gained = (0.5 - predicted.predicted.step_s) * 10
    assert plan.predicted.request_s == pytest.approx(predicted.predicted.request_s + gained, abs=1e-3)
    memory, step = plan.corrections
    assert (memory.number, memory.basis) == ("gpu_peak_bytes", "same configuration")
    assert (memory.predicted, memory.corrected) == (gpu_peak(predicted), gpu_peak(plan))
    assert (step.number, step.corrected) == ("step_s", 0.5)


def test_measurement_that_no_longer_fits_rules_the_option_out(wan: Checkpoint) -> None:
    whole = ONE.model_copy(update={"decoding": Decoding.WHOLE})
    predicted = plan_group(wan, H100, whole)
    with pytest.raises(InfeasiblePlanError, match="GiB a GPU"):
        plan_group(wan, H100, whole, measurements=[measured(predicted, excess_gib=30)])


@pytest.mark.parametrize(("excess_gib", "more_blocks"), [(1.0, False), (-1.0, True)])
def test_other_number_of_blocks_is_corrected_by_the_difference(
    wan: Checkpoint, excess_gib: float, more_blocks: bool
) -> None:
    tight = cluster_from_flags(gpus_per_node=1, gpu_type="H100", gpu_memory_gib=12, host_memory_gib=512)
    stated = {"forbid": {"transformer": (Residency.RESIDENT, Residency.OFFLOAD)}, "num_ranks": 1, **SHAPES}
    predicted = plan_group(wan, tight, PlanRequest(**stated))
    k = blocks_of(predicted)
    placed = {c.name: ResidencyChoice(residency=c.residency) for c in predicted.components}
    placed["transformer"] = ResidencyChoice(residency=Residency.LAYERWISE, num_resident_blocks=3)
    of_three = {**stated, "residency": placed}
    measurement = measured(plan_group(wan, tight, PlanRequest(**of_three)), excess_gib=excess_gib)
    plan = plan_group(wan, tight, PlanRequest(**stated), measurements=[measurement])
    assert plan.corrections[0].basis == "other number of resident blocks"
    assert blocks_of(plan) > k if more_blocks else blocks_of(plan) < k
    assert gpu_peak(plan) <= 12 * GIB - GIB


def blocks_of(plan: Plan) -> int:
    k = next(c.num_resident_blocks for c in plan.components if c.name == "transformer")
    assert k is not None
    return k


def test_other_configuration_is_corrected_upwards_only_and_its_step_scaled(wan: Checkpoint) -> None:
    predicted = plan_group(wan, H100, ONE)
    two = PlanRequest(cfg_degree=2, fsdp_degree=1, mode=Mode.SPEED, **SHAPES)
    plain = plan_group(wan, H100, two)
    assert predicted.predicted.step_s is not None
    assert plain.predicted.step_s is not None
    slower = measured(predicted, excess_gib=2, step_s=2 * predicted.predicted.step_s)
    plan = plan_group(wan, H100, two, measurements=[slower])
    assert gpu_peak(plan) == gpu_peak(plain) + 2 * GIB
    assert plan.predicted.step_s == pytest.approx(2 * plain.predicted.step_s, rel=1e-4)
    assert {c.basis for c in plan.corrections} == {"other residency or degrees"}
    less = plan_group(wan, H100, two, measurements=[measured(predicted, excess_gib=-2)])
    assert gpu_peak(less) == gpu_peak(plain)
    assert less.corrections == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu_type": "A100-40G"},
        {"checkpoint_fingerprint": "0" * 64},
        {"dtype": "float16"},
        {"device": "cpu"},
        {"components": {}},
    ],
)
def test_measurement_of_another_thing_changes_nothing(wan: Checkpoint, changes: dict[str, Any]) -> None:
    predicted = plan_group(wan, H100, ONE)
    other = measured(predicted, excess_gib=5, step_s=9.0, **changes)
    assert plan_group(wan, H100, ONE, measurements=[other]) == predicted


@pytest.mark.parametrize("changes", [{"compile": "none"}, {"attention_backend": "native"}])
@pytest.mark.parametrize("residency", ["resident", "offload"])
def test_step_of_compiled_blocks_and_another_kernel_does_not_correct_a_plan_without(
    wan: Checkpoint, changes: dict[str, str], residency: str
) -> None:
    compiled = measured(plan_group(wan, H100, ONE), excess_gib=1.0, step_s=0.01)
    stated = {"mode": "auto", "residency": {"text_encoder": {"residency": residency}}}
    request = PlanRequest.model_validate({**ONE.model_dump(), **stated, **changes})
    assert plan_group(wan, H100, request, measurements=[compiled]) == plan_group(wan, H100, request)
    same = PlanRequest.model_validate({**ONE.model_dump(), **stated})
    assert plan_group(wan, H100, same, measurements=[compiled]).corrections


def test_split_tokens_are_not_corrected_by_what_was_compiled(wan: Checkpoint) -> None:
    compiled = measured(plan_group(wan, H100, ONE), excess_gib=1.0, step_s=0.01)
    split = PlanRequest(num_ranks=2, sequence_degree=2, cfg_degree=1, mode=Mode.SPEED, **SHAPES)
    assert plan_group(wan, H100, split, measurements=[compiled]).corrections == ()


def test_measurement_of_another_shape_changes_nothing(wan: Checkpoint) -> None:
    predicted = plan_group(wan, H100, ONE)
    wider = plan_group(wan, H100, ONE.model_copy(update={"width": 640}))
    assert plan_group(wan, H100, ONE, measurements=[measured(wider, excess_gib=5)]) == predicted


def test_nonsense_in_a_measurement_is_passed_over(wan: Checkpoint) -> None:
    predicted = plan_group(wan, H100, ONE)
    components = dict(measured(predicted).key.components)
    streamed = components["transformer"].model_copy(
        update={"residency": Residency.LAYERWISE, "num_resident_blocks": 999}
    )
    nonsense = measured(predicted, excess_gib=5, components={**components, "transformer": streamed})
    assert plan_group(wan, H100, ONE, measurements=[nonsense]) == predicted


def test_cpu_group_learns_its_step_time(wan: Checkpoint) -> None:
    cpus = Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 256 * GIB),), "test")
    request = PlanRequest(**SHAPES)
    predicted = plan_group(wan, cpus, request)
    assert predicted.predicted.step_s is None
    plan = plan_group(wan, cpus, request, measurements=[measured(predicted, step_s=3.5)])
    assert plan.predicted.step_s == 3.5
    assert plan.predicted.request_s is None
    assert plan.corrections[0].predicted is None


def test_same_measurements_same_plan_to_the_byte(wan: Checkpoint) -> None:
    measurement = measured(plan_group(wan, H100, ONE), excess_gib=1, step_s=0.5)
    plans = {plan_group(wan, H100, ONE, measurements=[measurement]).model_dump_json() for _ in range(3)}
    assert len(plans) == 1


def test_merging_keeps_the_highest_peak_and_the_latest_steps(wan: Checkpoint) -> None:
    plan = plan_group(wan, H100, ONE)
    merged: Measurement | None = None
    for i in range(12):
        merged = merge_measurements(merged, measured(plan, excess_gib=1.0 if i == 3 else 0.0, step_s=1.0 + i))
    assert merged is not None
    assert merged.gpu_peak_bytes == (gpu_peak(plan) + GIB,)
    assert merged.step_samples_s == tuple(5.0 + i for i in range(8))
    assert merged.step_s == 9.0
    assert merged.num_reports == 12


def test_key_survives_json(wan: Checkpoint, tmp_path: Path) -> None:
    key = measurement_key(plan_group(wan, H100, ONE))
    assert key is not None
    assert MeasurementKey.model_validate_json(key.model_dump_json()) == key
