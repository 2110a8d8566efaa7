"""One short round of the chaos benchmark: no accepted job is lost, whatever dies."""

import json
import subprocess
import sys

import pytest

from tests.serve.processes import ROOT


@pytest.mark.full
@pytest.mark.timeout(420)
def test_jobs_are_made_once_and_right_though_a_rank_is_killed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.chaos", "--count", "1", "--folder", str(tmp_path), "--faults"]
    subprocess.run([*command, "rank_killed"], cwd=ROOT, timeout=400, check=True)
    (row,) = json.loads((tmp_path / "chaos.json").read_text())["rows"]
    assert row["requests"] == 5
    assert (row["different"], row["lost_jobs"], row["answered_twice"]) == (0, 0, 0)
    assert row["equal"] == 5, row
