"""Step caches: what they cannot be combined with is refused, from the table that the documentation shows."""

from pathlib import Path

import pytest

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import Cluster, cluster_from_flags
from planner.errors import InfeasiblePlanError
from planner.incompatibilities import TABLE
from planner.plan import InfeasibleReport, Mode, PlanRequest, Residency, ResidencyChoice, StepCache
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

DOCUMENT = Path(__file__).parents[3] / "docs" / "planning.md"
LAYERWISE = ResidencyChoice(residency=Residency.LAYERWISE)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))


def gpus(count: int) -> Cluster:
    return cluster_from_flags(gpus_per_node=count, gpu_type="H100")


@pytest.mark.parametrize("cache", list(StepCache))
@pytest.mark.parametrize("mode", list(Mode))
def test_plan_with_a_step_cache_neither_streams_nor_shards_the_denoiser(
    wan: Checkpoint, cache: StepCache, mode: Mode
) -> None:
    plan = plan_group(wan, gpus(2), PlanRequest(step_cache=cache, mode=mode))
    denoiser = next(c for c in plan.components if c.name == "transformer")
    assert denoiser.residency in {Residency.RESIDENT, Residency.OFFLOAD}
    assert plan.step_cache is cache
    assert any("step cache" in entry.reason for entry in plan.rejected)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (PlanRequest(step_cache=StepCache.FIRST_BLOCK, residency={"transformer": LAYERWISE}), "needs them resident"),
        (PlanRequest(step_cache=StepCache.MAG, fsdp_degree=2), "missing where the others gather it"),
        (PlanRequest(step_cache=StepCache.PYRAMID_ATTENTION_BROADCAST, cfg_degree=2), "use cfg_degree 1"),
    ],
)
def test_stated_combination_is_refused_with_the_reason(wan: Checkpoint, request_: PlanRequest, reason: str) -> None:
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_group(wan, gpus(2), request_)
    report = InfeasibleReport.model_validate_json(caught.value.report_json)
    assert any(reason in entry.reason for entry in report.rejected)
    assert str(request_.step_cache) in report.message


def test_streaming_an_encoder_beside_a_step_cache_is_allowed(wan: Checkpoint) -> None:
    request = PlanRequest(step_cache=StepCache.FIRST_BLOCK, residency={"text_encoder": LAYERWISE}, num_ranks=1)
    assert plan_group(wan, gpus(1), request).feasible


def test_every_entry_of_the_table_is_documented_and_can_apply() -> None:
    text = DOCUMENT.read_text()
    for entry in TABLE:
        assert f"| `{entry.name}` | {entry.reason} |" in text
    assert len({entry.name for entry in TABLE}) == len(TABLE)
