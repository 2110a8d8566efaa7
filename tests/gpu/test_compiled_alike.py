"""Ranks compile each for itself, and must come to the same bits whatever their kernels' timings say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
TIMES = "TORCHINDUCTOR_DISTORT_BENCHMARKING_RESULT"


def digest(cache: Path, **environment: str) -> str:
    """Of a process with compiled code of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.compiled_block"],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_the_kernels_times_do_not_change_the_result(tmp_path: Path) -> None:
    assert digest(tmp_path / "true") == digest(tmp_path / "false", **{TIMES: "inverse"})


def test_without_the_compilers_deterministic_mode_they_do(tmp_path: Path) -> None:
    """Or the test above shows nothing."""
    free = {"TORCHINDUCTOR_DETERMINISTIC": "0"}
    assert digest(tmp_path / "true", **free) != digest(tmp_path / "false", **free, **{TIMES: "inverse"})
