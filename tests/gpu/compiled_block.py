"""Prints a digest of what compiled blocks make of fixed inputs: `python -m tests.gpu.compiled_block`.

A process of its own, since the compiler's choices are made once a process.
"""

import hashlib
import tempfile
from pathlib import Path

import torch

from benchmarks import architectures as arch
from workers.compilation import compile_blocks


def main() -> None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    architecture = arch.WAN_1_3B.scaled(num_layers=2)
    with tempfile.TemporaryDirectory() as folder:
        module = arch.build_random(architecture, Path(folder), device=device, dtype=dtype)
    compile_blocks(module)
    inputs = arch.denoiser_inputs(architecture, arch.VIDEO_480P[17], device, dtype)
    with torch.no_grad():
        values = module(**inputs, return_dict=False)[0]
    print(hashlib.sha256(values.float().cpu().numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main()
