"""The run with Ray's own autoscaler, in short; and that it says what goes wrong."""

import json
import os
import subprocess
import sys
import uuid

import psutil
import pytest

from benchmarks import autoscaling_on_nodes as run
from tests.serve.processes import ROOT, wait_until


@pytest.mark.full
@pytest.mark.timeout(600)
def test_nodes_come_with_jobs_and_all_processes_are_gone_at_the_end(tmp_path):
    command = [sys.executable, "-m", "benchmarks.autoscaling_on_nodes", "--jobs", "4", "--max-nodes", "1"]
    environment = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "autoscaling_on_nodes.json").read_text())["rows"]
    assert (row["completed"], row["most_nodes"], row["most_groups"], row["processes_left"]) == (4, 1, 1, 0)


def test_head_that_does_not_come_up_is_said_with_its_reason(tmp_path):
    log = tmp_path / "head.log"
    log.write_text("cannot bind to the port")
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as ended:
        ended.wait(timeout=30)
        with pytest.raises(RuntimeError, match="ended with status 3: cannot bind to the port"):
            run.connect(1, ended, log)


def test_process_that_is_left_is_named_and_ended(monkeypatch):
    mark = uuid.uuid4().hex
    monkeypatch.setenv("HELIOGRAPH_AUTOSCALING_RUN", mark)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as left:
        wait_until(lambda: psutil.Process(left.pid).environ().get("HELIOGRAPH_AUTOSCALING_RUN") == mark, "its start")
        (line,) = run.end_what_is_left(mark, timeout_s=0.1)
        assert line.startswith(f"{left.pid} ")
        assert left.wait(timeout=30) != 0
    assert run.end_what_is_left(mark, timeout_s=0.1) == []


def test_row_of_a_run_that_failed_is_an_error():
    row = {"jobs": 5, "completed": 4, "no_group_s": 12.0, "no_node_s": None}
    missing, node = run.find_problems(row)
    assert missing == "1 of 5 jobs were not made"
    assert "no_node_s" in node
