"""From a warm-up call to the planner's record of it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deployments import measuring
from deployments.measuring import make_call_stats, make_measurement, report_to_planner
from planner.checkpoint import read_checkpoint
from planner.cluster import cluster_from_flags
from planner.errors import ProfileError
from planner.plan import Plan, PlannedShape, PlanRequest
from planner.search import plan_group
from tests.plans import make_wan_plan
from tests.unit.planner.checkpoints import write_wan
from workers.calls import GenerateResult, RankStats


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    checkpoint = read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))
    return plan_group(checkpoint, cluster_from_flags(gpus_per_node=2, gpu_type="H100"), PlanRequest(cfg_degree=2))


def result(*shape: int, used: Sequence[int | None] = (None, None)) -> GenerateResult:
    return GenerateResult(
        output=np.zeros(shape, dtype=np.uint8),
        output_kind="video" if len(shape) == 5 else "image",
        seed=0,
        stage_seconds={"encode": 1.0, "denoise": 3.0, "decode": 0.5},
        ranks=tuple(RankStats(rank, 1, 1, 0, 10**9 + rank, device_used_bytes=used[rank]) for rank in (0, 1)),
    )


def test_measurement_is_of_what_was_really_made(plan: Plan) -> None:
    measurement = make_measurement(plan, result(1, 17, 480, 832, 3), num_steps=2, clock=lambda: 7.0)
    assert measurement is not None
    assert measurement.key.shape == PlannedShape(width=832, height=480, num_frames=17, batch_size=1)
    assert (measurement.key.gpu_type, measurement.key.cfg_degree) == ("H100", 2)
    assert measurement.gpu_peak_bytes == (10**9, 10**9 + 1)
    assert measurement.step_samples_s == (1.5,)
    assert measurement.updated_at == 7.0
    picture = make_measurement(plan, result(2, 64, 96, 3), num_steps=2)
    assert picture is not None
    assert picture.key.shape == PlannedShape(width=96, height=64, num_frames=1, batch_size=2)


def test_call_stats_are_of_this_call_and_this_group(plan: Plan, tmp_path: Path) -> None:
    stats = make_call_stats(plan, result(1, 17, 480, 832, 3, used=(3 * 10**9, 2 * 10**9)))
    assert stats.stage_seconds == {"encode": 1.0, "denoise": 3.0, "decode": 0.5}
    assert stats.gpu_peak_bytes == (10**9, 10**9 + 1)
    assert stats.gpu_used_bytes == (3 * 10**9, 2 * 10**9)
    assert (stats.num_gpus, stats.num_frames) == (2, 17)
    on_cpu = make_call_stats(make_wan_plan(tmp_path), result(1, 64, 96, 3))
    assert on_cpu.gpu_used_bytes == ()
    assert (on_cpu.gpu_peak_bytes, on_cpu.num_gpus, on_cpu.num_frames) == ((), 0, 1)
    assert (stats.batch_size, make_call_stats(plan, result(3, 64, 96, 3)).batch_size) == (1, 3)


def test_plan_made_by_hand_gives_no_measurement(tmp_path: Path) -> None:
    assert make_measurement(make_wan_plan(tmp_path), result(1, 64, 64, 3), num_steps=2) is None


def test_group_serves_also_where_profiles_cannot_be_kept(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ProfileError("disk full")

    monkeypatch.setattr(measuring, "report_measurement", fail)
    measurement = make_measurement(plan, result(1, 64, 64, 3), num_steps=2)
    assert measurement is not None
    with caplog.at_level(logging.WARNING):
        report_to_planner(measurement, profiles="/profiles")
    assert "disk full" in caplog.text
