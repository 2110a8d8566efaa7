"""The benchmark that judges the embedded checkpoint however it is placed, on a few prompts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLACEMENTS = ("2 ranks, CFG lanes", "2 ranks, sharded", "1 rank, float32, guidance off")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_placements_draw_what_was_asked_and_guidance_off_does_not(tmp_path: Path) -> None:
    """In a process of its own, since it has a Ray of its own, and other tests here share one."""
    command = [sys.executable, "-m", "benchmarks.judged_placements", "--num-prompts", "20", "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--only", *PLACEMENTS], capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "judged_placements.json").read_text())["rows"]
    accepted = {name: [row["accepted"] for row in rows if row["placement"] == name] for name in PLACEMENTS}
    assert min(accepted["2 ranks, CFG lanes"]) >= 0.95
    assert min(accepted["2 ranks, sharded"]) >= 0.95
    assert max(accepted["1 rank, float32, guidance off"]) <= 0.85
