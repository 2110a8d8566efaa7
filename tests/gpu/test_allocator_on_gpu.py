"""Freed device memory serves larger tensors.

python -m pytest -c tests/gpu/pytest.ini tests/gpu/test_allocator_on_gpu.py
"""

import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SCRIPT = """
import torch
from workers.memory import use_expandable_segments
assert use_expandable_segments({})
torch.cuda.set_device(0)
small = [torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda") for _ in range(32)]
kept = small[::16]
del small
before = torch.cuda.memory_reserved()
large = torch.empty(800 * 2**20, dtype=torch.uint8, device="cuda")
print(torch.cuda.memory_reserved() - before, torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"])
"""


def test_pieces_freed_side_by_side_hold_a_larger_tensor() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, is_expandable = done.stdout.split()
    assert is_expandable == "True"
    assert int(grown) < 100 * 2**20, "the larger tensor was put beside the freed pieces"
