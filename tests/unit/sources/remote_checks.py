"""What holds for a checkpoint wherever it lies."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from planner.checkpoint import read_checkpoint
from workers.fetch import fetch_checkpoint

LARGE = 10**9
ROOT = Path(__file__).parents[3]


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def header_bytes(file: Path) -> int:
    """Length field and header."""
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")


def assert_read_alike(url: str, folder: Path) -> None:
    """The planner sees the same checkpoint behind the URL as in the folder."""
    there, here = read_checkpoint(url), read_checkpoint(str(folder))
    assert there.path == url
    assert there.fingerprint == here.fingerprint
    assert there.payload_bytes == here.payload_bytes > 0
    assert there.components == here.components
    assert there.weightless == here.weightless
    assert there.options == here.options


def fetch(url: str, cache: Path, *, range_bytes: int = 64 * 1024, max_bytes: int = LARGE) -> Path:
    return fetch_checkpoint(url, cache=cache, max_bytes=max_bytes, timeout_s=60, range_bytes=range_bytes)


def assert_fetched_alike(fetched: Path, folder: Path) -> None:
    """Every file of the folder is in what was fetched, equal to the byte."""
    for file in folder.rglob("*"):
        if file.is_file():
            assert (fetched / file.relative_to(folder)).read_bytes() == file.read_bytes(), file


def assert_nothing_kept(cache: Path) -> None:
    """A fetch that failed leaves no folder behind."""
    assert [entry.name for entry in cache.glob("*") if entry.is_dir()] == []


def plan_by_command(url: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`heliograph plan URL --gpus 1 --gpu-type H100 --json`, which finds the server by its environment alone."""
    command = [sys.executable, "-m", "deployments.cli", "plan", url, "--gpus", "1", "--gpu-type", "H100", "--json"]
    drop = ("AWS_", "HF_", "GOOGLE_", "STORAGE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return subprocess.run(
        command,
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )


def assert_planned(result: subprocess.CompletedProcess[str], url: str) -> None:
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["checkpoint"] == url
