"""The two-GPU benchmark runs whole with tiny models on two CPU ranks, and its comparisons hold there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from benchmarks.architectures import SMALL_WAN, build_random, fill_random
from tests.dist.weights.ranks import run_ranks
from workers.sharding import apply_sharding

LIMIT_S = 1500


@pytest.mark.full
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("sections", [("cfg", "seam"), ("fsdp", "sequence"), ("equality", "faults")], ids="-".join)
def test_every_section_keeps_its_figures(sections: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.two_gpus", "--small", "--limit-s", str(LIMIT_S), "--only", *sections]
    environment = {**os.environ, "OUT": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads((tmp_path / "two_gpus.json").read_text())["rows"]
    assert {row["section"] for row in rows} >= set(sections)
    compared = [row for row in rows if row["section"] == "equality"]
    assert compared or not {"cfg", "fsdp", "sequence", "equality"} & set(sections)
    assert all(row["finite"] and row["max_difference"] < 1e-4 for row in compared)
    assert all(row["same_result"] and row["noticed_by"] != "nobody" for row in rows if row["section"] == "faults")
    assert "== " + sections[-1] in done.stdout


def fill_both(mesh: DeviceMesh, folder: str) -> bool:
    """Whether a sharded model, filled in place, holds the values of an unsharded one."""
    cpu = torch.device("cpu")
    place = Path(folder) / str(mesh.get_local_rank())
    whole = build_random(SMALL_WAN, place, device=cpu, dtype=torch.float32, seed=3)
    sharded = build_random(SMALL_WAN, place, device=cpu, dtype=torch.float32)
    sharding = apply_sharding(sharded, mesh=mesh)
    fill_random(sharded, seed=3, device=cpu)
    for name, value in whole.named_parameters():
        piece, expected = sharding.piece(name), value.reshape(-1)
        own = sharded.get_parameter(name).reshape(-1) if piece is None else piece.values
        first = 0 if piece is None else piece.first
        if not torch.equal(own, expected[first : first + own.numel()]):
            return False
    return not sharding.unfilled


def test_random_weights_are_the_same_on_shards(tmp_path: Path) -> None:
    assert run_ranks(fill_both, tmp_path, str(tmp_path)) == [True, True]
