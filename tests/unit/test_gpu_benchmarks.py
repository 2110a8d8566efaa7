"""The GPU benchmarks' scripts run: with tiny models on the CPU, all sides of each, and the sides agree."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.architectures import (
    FLUX_DEV,
    QWEN25_VL,
    QWEN_IMAGE,
    WAN_1_3B,
    WAN_14B,
    flux_request,
    write_config,
    write_sparse_checkpoint,
)
from benchmarks.gpu import NAMES
from benchmarks.measuring import Options
from planner.checkpoint import read_checkpoint
from workers.stream_build import build_empty, component_class

SMALL = Options(torch.device("cpu"), is_small=True, num_repeats=1)
QUICK = {"norms_saving", "streaming", "streamed_start"}
SIDES = {"norms_saving": 4, "streaming": 3, "streamed_start": 2, "limited_gpu": 6, "sharded_alone": 4, "compiled": 6,
         "loading": 9, "end_to_end": 3, "decoding": 2}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in NAMES]
)
def test_every_side_runs_and_agrees(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))  # the kept figures are a GPU's
    rows: list[dict[str, Any]] = importlib.import_module(f"benchmarks.{name}").run(SMALL)
    assert len(rows) == SIDES[name]
    assert all(set(row) == set(rows[0]) for row in rows)
    for row in rows:
        assert row.get("equal", True)
        assert row.get("finite", True)
        assert row.get("difference", 0.0) < 1e-4
        assert all(not math.isnan(value) for value in row.values() if isinstance(value, float))


@pytest.mark.parametrize(
    ("architecture", "billions"),
    [(WAN_1_3B, 1.42), (WAN_14B, 14.29), (FLUX_DEV, 11.90), (QWEN_IMAGE, 20.43), (QWEN25_VL, 8.29)],
)
def test_architectures_have_the_published_number_of_parameters(
    architecture: Any, billions: float, tmp_path: Path
) -> None:
    write_config(architecture, tmp_path)
    model = build_empty(component_class(architecture.library, architecture.class_name), tmp_path, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_sparse_checkpoints_are_planned_as_real_ones_and_take_no_room(tmp_path: Path) -> None:
    write_sparse_checkpoint(flux_request(is_small=False), tmp_path, dtype=torch.bfloat16)
    assert read_checkpoint(str(tmp_path)).payload_bytes == pytest.approx(33.76e9, rel=0.01)
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*.safetensors")) < 50e6


@pytest.mark.full
def test_the_front_end_runs_and_prints_a_table_last(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--only", "norms_saving"]
    done = subprocess.run(
        command, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "== norms_saving: done" in done.stdout
    assert json.loads((tmp_path / "norms_saving.json").read_text())["rows"]
