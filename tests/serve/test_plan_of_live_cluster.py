"""`heliograph plan` without cluster options plans for the Ray cluster that runs, token and all."""

import json
from pathlib import Path

import pytest

from tests.serve.processes import ROOT, Command, heliograph, wait_until

pytestmark = pytest.mark.full


def test_plan_is_for_the_nodes_of_the_running_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster = Command(["-m", "tests.serve.ray_with_dashboard"], tmp_path / "cluster")
    try:
        wait_until(lambda: "\n" in cluster.stdout or cluster.process.poll() is not None, "a dashboard", timeout_s=60)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", json.loads(cluster.stdout)["dashboard"])
        command = heliograph("plan", ROOT / "checkpoints" / "shapes", "--json", folder=tmp_path / "plan")
        assert command.wait(timeout_s=60) == 0, command.stderr
        plan = json.loads(command.stdout)
        # `cluster.yaml` in this folder has GPUs, the running cluster has none.
        assert plan["device"] == "cpu"
    finally:
        cluster.interrupt()
        cluster.wait(timeout_s=40)
        cluster.kill_all()
