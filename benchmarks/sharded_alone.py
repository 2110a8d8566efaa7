"""FSDP2 on a world of one against the same model unsharded: what the machinery costs where it saves nothing.

    python -m benchmarks.sharded_alone [--small] [--repeats N]

NCCL on a GPU, gloo on the CPU. Results have to be equal to the bit.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from benchmarks import architectures as arch
from benchmarks.measuring import Options, free, peak_gib, read_options, time_call
from benchmarks.record import keep
from workers.sharding import apply_sharding

NAME = "sharded_alone"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a side."""
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_1_3B
    shape = arch.Shape(64, 64, 5, text_tokens=8) if options.is_small else arch.VIDEO_480P[17]
    inputs = arch.denoiser_inputs(architecture, shape, options.device, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        module = arch.build_random(architecture, Path(folder), device=options.device, dtype=options.dtype)
        free(options.device)
        plain, expected = _measure("unsharded", module, inputs, options)
        store = dist.FileStore(f"{folder}/rendezvous", 1)
        dist.init_process_group("nccl" if options.device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        try:
            apply_sharding(module, mesh=init_device_mesh(options.device.type, (1,)))
            free(options.device)
            sharded, result = _measure("sharded, world of 1", module, inputs, options)
        finally:
            dist.destroy_process_group()
    rows = [plain, sharded]
    for row, value in zip(rows, (expected, result), strict=True):
        row["ratio"] = row["ms"] / plain["ms"]
        row["equal"] = torch.equal(value, expected)
    return rows


def _measure(
    side: str, module: torch.nn.Module, inputs: dict[str, Any], options: Options
) -> tuple[dict[str, Any], torch.Tensor]:
    milliseconds = time_call(lambda: module(**inputs, return_dict=False), options)
    with torch.no_grad():
        result = module(**inputs, return_dict=False)[0].clone()
    return {"side": side, "ms": milliseconds, "peak_gib": peak_gib(options.device)}, result


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
