"""A group's warm-up ends up in the profiles, and the next plan is corrected by it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.checkpoint import read_checkpoint
from planner.cluster import GIB, Cluster, NodeType
from planner.plan import PlanRequest
from planner.profiles import read_measurements
from planner.search import plan_group
from tests.serve.conftest import SHAPES, RunningApp
from tests.serve.processes import ROOT, Command


def test_what_the_warm_up_of_a_running_app_measured_is_kept(app: RunningApp) -> None:
    fingerprint = read_checkpoint(str(SHAPES)).fingerprint
    measurements = read_measurements(str(app.profiles), checkpoint_fingerprint=fingerprint)
    assert {m.key.shape.num_frames > 1 for m in measurements} == {False, True}, "a picture and a video"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_warm_up_is_kept_and_corrects_the_next_plan(run_heliograph: Callable[..., Command], tmp_path: Path) -> None:
    profiles = tmp_path / "profiles"
    config = (ROOT / "examples" / "shapes.yaml").read_text()
    assert "checkpoint: checkpoints/shapes" in config
    file = tmp_path / "shapes.yaml"
    stated = f"checkpoint: {SHAPES}\n      profiles: {profiles}"
    file.write_text(config.replace("checkpoint: checkpoints/shapes", stated))
    command = run_heliograph("serve", file, "--port", "0")
    command.wait_for_line("Ctrl-C stops it", timeout_s=200)
    command.interrupt()
    assert command.wait(timeout_s=40) == 130, command.stderr
    checkpoint = read_checkpoint(str(SHAPES))
    measurements = read_measurements(str(profiles), checkpoint_fingerprint=checkpoint.fingerprint)
    assert {m.key.shape.num_frames > 1 for m in measurements} == {False, True}  # a picture and a video
    machine = Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 64 * GIB),), "test")
    plan = plan_group(checkpoint, machine, PlanRequest(cfg_degree=2, num_ranks=2), measurements=measurements)
    assert [correction.number for correction in plan.corrections] == ["step_s"]
    assert plan.predicted.step_s is not None
    assert plan.predicted.step_s > 0
    documents = [json.loads(path.read_text()) for path in profiles.rglob("*.json")]
    assert all(document["schema_version"] == 2 for document in documents)
