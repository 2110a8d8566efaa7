"""Sharding on a world of one against the same model unsharded: what the machinery costs where it saves nothing.

    python -m benchmarks.sharded_alone [--small] [--repeats N]

NCCL on a GPU, gloo on the CPU. Results have to be equal to the bit.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh

from benchmarks import architectures as arch
from benchmarks.measuring import Options, free, peak_gib, read_options, time_call
from benchmarks.record import keep
from planner.plan import ShardUnit
from workers.compilation import compile_blocks
from workers.sharding import apply_sharding

NAME = "sharded_alone"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a length and side."""
    shapes = [arch.Shape(64, 64, 5, text_tokens=8)] if options.is_small else list(arch.VIDEO_480P.values())
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(f"{folder}/rendezvous", 1)
        # Else a length that was compiled by itself is later run by the code for all lengths, which rounds otherwise.
        torch._dynamo.config.automatic_dynamic_shapes = False
        dist.init_process_group("nccl" if options.device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        try:
            return [
                row
                for blocks in ("eager", "compiled")
                for shard_by in (ShardUnit if blocks == "eager" else (ShardUnit.BLOCKS,))
                for row in _compare(Path(folder), shapes, options, is_compiled=blocks == "compiled", shard_by=shard_by)
            ]
        finally:
            dist.destroy_process_group()


def _compare(
    folder: Path, shapes: list[arch.Shape], options: Options, *, is_compiled: bool, shard_by: ShardUnit
) -> list[dict[str, Any]]:
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_1_3B
    module = arch.build_random(architecture, folder, device=options.device, dtype=options.dtype)
    if is_compiled:
        compile_blocks(module, backend="aot_eager" if options.is_small else "inductor")
    inputs = {
        shape.num_frames: arch.denoiser_inputs(architecture, shape, options.device, options.dtype) for shape in shapes
    }
    plain = [_measure(module, frames, given, options) for frames, given in inputs.items()]
    apply_sharding(module, mesh=init_device_mesh(options.device.type, (1,)), shard_by=shard_by, cut_from_bytes=0)
    sharded = [_measure(module, frames, given, options) for frames, given in inputs.items()]
    blocks = "compiled" if is_compiled else "eager"
    return [
        {
            "frames": row["frames"], "blocks": blocks, "side": side, "ms": row["ms"],
            "ratio": row["ms"] / reference["ms"], "peak_gib": row["peak_gib"],
            "equal": torch.equal(result, expected),
        }
        for (reference, expected), pair in zip(plain, sharded, strict=True)
        for side, (row, result) in (("unsharded", (reference, expected)), (f"sharded by {shard_by}, world of 1", pair))
    ]  # fmt: skip


def _measure(
    module: torch.nn.Module, frames: int, inputs: dict[str, Any], options: Options
) -> tuple[dict[str, Any], torch.Tensor]:
    free(options.device)
    milliseconds = time_call(lambda: module(**inputs, return_dict=False), options)
    with torch.no_grad():
        result = module(**inputs, return_dict=False)[0].clone()
    return {"frames": frames, "ms": milliseconds, "peak_gib": peak_gib(options.device)}, result


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
