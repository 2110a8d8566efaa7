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
    """One row a length and side."""
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_1_3B
    shapes = [arch.Shape(64, 64, 5, text_tokens=8)] if options.is_small else list(arch.VIDEO_480P.values())
    inputs = {
        shape.num_frames: arch.denoiser_inputs(architecture, shape, options.device, options.dtype) for shape in shapes
    }
    with tempfile.TemporaryDirectory() as folder:
        module = arch.build_random(architecture, Path(folder), device=options.device, dtype=options.dtype)
        free(options.device)
        plain = [_measure("unsharded", module, frames, given, options) for frames, given in inputs.items()]
        store = dist.FileStore(f"{folder}/rendezvous", 1)
        dist.init_process_group("nccl" if options.device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        try:
            apply_sharding(module, mesh=init_device_mesh(options.device.type, (1,)))
            free(options.device)
            sharded = [
                _measure("sharded, world of 1", module, frames, given, options) for frames, given in inputs.items()
            ]
        finally:
            dist.destroy_process_group()
    for (reference, expected), (row, result) in zip([*plain, *plain], [*plain, *sharded], strict=True):
        row["ratio"] = row["ms"] / reference["ms"]
        row["equal"] = torch.equal(result, expected)
    return [row for pair in zip(plain, sharded, strict=True) for row, _ in pair]


def _measure(
    side: str, module: torch.nn.Module, frames: int, inputs: dict[str, Any], options: Options
) -> tuple[dict[str, Any], torch.Tensor]:
    milliseconds = time_call(lambda: module(**inputs, return_dict=False), options)
    with torch.no_grad():
        result = module(**inputs, return_dict=False)[0].clone()
    return {"frames": frames, "side": side, "ms": milliseconds, "peak_gib": peak_gib(options.device)}, result


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
