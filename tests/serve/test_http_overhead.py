"""The benchmark of the service's overhead runs, and says what it must."""

import json
import subprocess
import sys

import pytest

from tests.serve.processes import ROOT


@pytest.mark.full
@pytest.mark.timeout(500)
def test_overhead_is_measured_for_the_same_picture_in_all_arms(tmp_path):
    command = [sys.executable, "-m", "benchmarks.http_overhead", "--ranks", "1", "--steps", "2", "--seconds", "0.5"]
    done = subprocess.run(
        [*command, "--concurrency", "4", "--folder", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=450, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "http_overhead.json").read_text())["rows"]
    assert [(row["ranks"], row["clients"]) for row in rows] == [(1, 1), (1, 4)]
    for row in rows:
        assert row["num_pictures"] >= row["clients"]
        assert row["service_to_plain"] == pytest.approx(row["service_per_s"] / row["plain_per_s"])
        assert row["added_p50_ms"] == pytest.approx(row["service_p50_ms"] - row["group_p50_ms"])
