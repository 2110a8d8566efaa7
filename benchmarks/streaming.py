"""One call of Wan 14B at three lengths: resident, streamed, streamed at the knee, and diffusers' group offloading.

    python -m benchmarks.streaming [--small] [--repeats N]

The same weights on all sides; `equal` says whether the result is the resident one's to the bit.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import architectures as arch
from benchmarks.measuring import Options, free, peak_gib, pinned_copy_gb_s, read_options, time_call, time_once
from benchmarks.record import keep
from planner.costs import knee
from workers.streaming import apply_streaming

NAME = "streaming"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a side and length."""
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_14B
    shapes = {5: arch.Shape(64, 64, 5, text_tokens=8)} if options.is_small else arch.VIDEO_480P
    copy_gb_s = pinned_copy_gb_s(options)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:

        def build() -> nn.Module:
            return arch.build_random(architecture, Path(folder), device=options.device, dtype=options.dtype)

        resident = _measure("resident", build(), architecture, shapes, options)
        rows += _rows(resident, resident)
        for name, prepare in _sides(options, resident, copy_gb_s, num_blocks=architecture.config["num_layers"]):
            free(options.device)
            module = build().to("cpu")
            free(options.device)
            setup_s, _ = time_once(lambda prepare=prepare, module=module: prepare(module), options)
            rows += _rows(_measure(name, module, architecture, shapes, options), resident, setup_s=setup_s)
            del module
    return rows


def _sides(
    options: Options, resident: dict[int, dict[str, Any]], copy_gb_s: float, *, num_blocks: int
) -> Iterator[tuple[str, Callable[[nn.Module], Any]]]:
    yield "all streamed", lambda module: apply_streaming(module, device=options.device)
    sizes = resident[next(iter(resident))]["block_bytes"]
    ks = {
        knee(compute_s=row["ms"] / 1e3, block_bytes=sizes, num_blocks=num_blocks, copy_gb_s=copy_gb_s)
        for row in resident.values()
    }
    for k in sorted(ks - {0, num_blocks}):
        yield (
            f"streamed, {k} resident",
            lambda module, k=k: apply_streaming(module, device=options.device, num_resident_blocks=k),
        )
    yield (
        "diffusers group offload",
        lambda module: module.enable_group_offload(
            onload_device=options.device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=options.device.type == "cuda",
        ),
    )


def _measure(
    name: str, module: nn.Module, architecture: arch.Architecture, shapes: dict[int, arch.Shape], options: Options
) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    blocks: Any = module.blocks
    block_bytes = sum(parameter.nbytes for parameter in blocks[0].parameters())
    for frames, shape in shapes.items():
        inputs = arch.denoiser_inputs(architecture, shape, options.device, options.dtype)
        free(options.device)
        milliseconds = time_call(lambda inputs=inputs: module(**inputs, return_dict=False), options)
        with torch.no_grad():
            result = module(**inputs, return_dict=False)[0].cpu()
        found[frames] = {
            "side": name, "ms": milliseconds, "peak_gib": peak_gib(options.device), "result": result,
            "block_bytes": block_bytes,
        }  # fmt: skip
    return found


def _rows(
    side: dict[int, dict[str, Any]], resident: dict[int, dict[str, Any]], *, setup_s: float = 0.0
) -> list[dict[str, Any]]:
    return [
        {
            "frames": frames,
            "side": row["side"],
            "ms": row["ms"],
            "ratio": row["ms"] / resident[frames]["ms"],
            "peak_gib": row["peak_gib"],
            "equal": torch.equal(row["result"], resident[frames]["result"]),
            "setup_s": setup_s,
        }
        for frames, row in side.items()
    ]


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
