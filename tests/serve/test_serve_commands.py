"""`heliograph serve` and `serve deploy` as processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import SHAPES
from tests.serve.processes import ROOT, Command, heliograph, wait_until

QUICK = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 1}


def test_serve_answers_until_interrupted_and_leaves_nothing(run_heliograph):
    command = run_heliograph("serve", SHAPES, "--port", "0")
    command.wait_for_line("Ctrl-C stops it")
    assert "warming up, shape 1 of 2" in command.stderr
    url = re.search(r"http://127\.0\.0\.1:\d+", command.stderr)[0]
    answer = httpx.post(f"{url}/v1/images/generations", json=QUICK, timeout=30)
    assert answer.status_code == 200
    command.interrupt()
    assert command.wait(timeout_s=40) == 130, command.stderr
    command.check_nothing_left()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/live", timeout=5)


@pytest.mark.full
def test_app_that_cannot_start_is_said_at_once(run_heliograph, tmp_path):
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(SHAPES, broken)
    weights = next((broken / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["nobody.knows.me"] = tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights)
    command = run_heliograph("serve", broken, "--port", "0")
    assert command.wait() == 1
    assert "nobody.knows.me" in command.stderr
    command.check_nothing_left()


@pytest.fixture
def cluster(tmp_path):
    """A Ray with a dashboard, as `ray start --head` gives, that ends with its process."""
    command = Command(["-m", "tests.serve.ray_with_dashboard"], tmp_path / "cluster")
    yield command
    command.interrupt()
    command.wait(timeout_s=40)
    command.kill_all()


def test_serve_deploy_of_the_example(cluster, tmp_path, monkeypatch):
    wait_until(lambda: "\n" in cluster.stdout or cluster.process.poll() is not None, "a dashboard", timeout_s=60)
    dashboard = json.loads(cluster.stdout)["dashboard"]
    config = (ROOT / "examples" / "shapes.yaml").read_text()
    port = json.loads(cluster.stdout)["free_port"]
    file = tmp_path / "shapes.yaml"
    file.write_text(config.replace("port: 8000", f"port: {port}"))
    serve_cli = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "--address", dashboard]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}  # the command itself does not turn it on
    done = subprocess.run(serve_cli, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    url = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(answers, "healthy", timeout_s=90)
    answer = httpx.post(f"{url}/v1/images/generations", json=QUICK, timeout=30)
    assert answer.status_code == 200
    assert httpx.get(f"{url}/plan").json()["group"]["cfg_degree"] == 2
    monkeypatch.setenv("RAY_ADDRESS", json.loads(cluster.stdout)["address"])
    status = heliograph("status", folder=tmp_path / "status")
    assert status.wait() == 0, status.stderr
    assert status.stdout.splitlines() == ["heliograph: ready", "  Group: 1 ready", "  Ingress: 2 ready"]
