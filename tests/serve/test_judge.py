"""The picture is right: the judge reads what the running service drew for prompts that were held out of training."""

import json
import subprocess
import sys

import pytest

from tests.serve.conftest import RunningApp
from tests.serve.processes import ROOT

NUM_PROMPTS = 6


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["pictures", pytest.param("videos", marks=pytest.mark.full)])
def test_the_judge_accepts_what_the_service_draws(app: RunningApp, kind: str) -> None:
    command = [
        sys.executable,
        "checkpoints/judge_shapes.py",
        "--url",
        app.url,
        f"--{kind}",
        "--json",
        "--timeout-s",
        "200",
    ]
    done = subprocess.run(
        [*command, "--num-prompts", str(NUM_PROMPTS), "--seed", "11"],
        cwd=ROOT, capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shares = json.loads(done.stdout)[kind]["scores"]
    assert shares["accepted"] >= 1 - 1 / NUM_PROMPTS, shares
