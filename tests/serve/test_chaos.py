"""The chaos benchmark: one short round, and an interrupt in the middle of one."""

import json
import subprocess
import sys

import psutil
import pytest

from tests.serve.processes import ROOT, Command, wait_until

pytestmark = pytest.mark.full


@pytest.mark.timeout(420)
def test_requests_are_made_once_and_right_though_a_rank_is_killed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.chaos", "--count", "1", "--folder", str(tmp_path), "--faults"]
    subprocess.run([*command, "rank_killed"], cwd=ROOT, timeout=400, check=True)
    (row,) = json.loads((tmp_path / "chaos.json").read_text())["rows"]
    assert (row["requests"], row["equal"]) == (20, 20), row
    assert (row["lost_jobs"], row["answered_twice"]) == (0, 0)


@pytest.mark.timeout(400)
def test_termination_leaves_nothing(tmp_path):
    arguments = ["-m", "benchmarks.chaos", "--folder", str(tmp_path / "ledger"), "--faults", "rank_stopped"]
    command = Command(arguments, tmp_path / "run")
    try:
        wait_until(lambda: any(map(is_rank, command.left_over())), "a rank", timeout_s=240)
        command.process.terminate()
        assert command.wait(timeout_s=90) == 1
        assert "interrupted" in command.stderr
        command.check_nothing_left()
    finally:
        command.kill_all()


def is_rank(process):
    try:
        return " ".join(process.cmdline()).startswith("ray::RankActor")
    except psutil.Error:
        return False
