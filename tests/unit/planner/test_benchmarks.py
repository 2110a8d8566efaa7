"""The planner's benchmarks run: on tiny models, and on few repetitions."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import planning_time, predicted_against_measured
from benchmarks.predicted_against_measured import CASES


@pytest.mark.parametrize(
    "case",
    [pytest.param(case.name, marks=() if case.name == "Wan 14B, layerwise:10" else pytest.mark.full) for case in CASES],
)
def test_predictions_are_compared_with_what_ran_as_planned(case: str, tmp_path: Path) -> None:
    arguments = ["--dry-run", "--case", case, "--folder", str(tmp_path)]
    (row,) = predicted_against_measured.main(arguments)
    assert row["step_measured_s"] > 0
    assert row["step_calibrated_s"] == pytest.approx(row["step_measured_s"], rel=1e-3)
    assert row["peak_predicted_gib"] > 0
    if "layerwise:10" in case:
        assert "transformer=layerwise:10" in row["plan"]
    kept = json.loads((tmp_path / "predicted_against_measured_dry_run.json").read_text())
    assert kept["rows"][0]["case"] == case


def test_planning_time_is_measured_for_every_model_and_mode(tmp_path: Path) -> None:
    rows = planning_time.main(["--repeat", "1", "--model", "SDXL", "--folder", str(tmp_path)])
    assert {row["mode"] for row in rows if row["what"] == "SDXL"} == {"speed", "auto", "memory"}
    assert all(row["median_ms"] > 0 for row in rows)
    assert any("1000 nodes" in row["what"] for row in rows)
    assert json.loads((tmp_path / "planning_time.json").read_text())["rows"] == rows
