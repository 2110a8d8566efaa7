"""One call of Wan 14B at three lengths: resident, streamed, streamed at the knee, and diffusers' group offloading.

    python -m benchmarks.streaming [--small] [--repeats N]

The same weights on all sides; `equal` says whether the result is the resident one's to the bit.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import architectures as arch
from benchmarks.measuring import Options, free, peak_gib, pinned_copy_gb_s, read_options, time_call, time_once
from benchmarks.record import keep
from planner.costs import knee
from workers.stream_engine import HostMemory
from workers.streaming import apply_streaming, streaming_place

NAME = "streaming"


@dataclass(frozen=True, slots=True)
class Side:
    """A way to hold the weights: how the model is made, and how it is set up (this is timed)."""

    name: str
    build: Callable[[Path], nn.Module]
    set_up: Callable[[nn.Module], Any]


def run(options: Options) -> list[dict[str, Any]]:
    """One row a side and length."""
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_14B
    shapes = {5: arch.Shape(64, 64, 5, text_tokens=8)} if options.is_small else arch.VIDEO_480P
    copy_gb_s = pinned_copy_gb_s(options)
    rows: list[dict[str, Any]] = []
    resident: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in _sides(architecture, options, resident, copy_gb_s):
            free(options.device)
            build_s, module = time_once(partial(side.build, Path(folder)), options)
            free(options.device)
            setup_s, _ = time_once(partial(side.set_up, module), options)
            found = _measure(side.name, module, architecture, shapes, options)
            resident.update({} if resident else found)
            rows += _rows(found, resident, setup_s=setup_s)
            print(f"{side.name}: built in {build_s:.1f} s, set up in {setup_s:.1f} s", flush=True)
            keep(NAME, rows)
            del module, found
    return rows


def _sides(
    architecture: arch.Architecture, options: Options, resident: dict[int, dict[str, Any]], copy_gb_s: float
) -> Iterator[Side]:
    build = partial(arch.build_random, architecture, device=options.device, dtype=options.dtype)
    yield Side("resident", build, lambda module: module)
    yield _streamed("all streamed", build, options, k=0)
    num_blocks = architecture.config["num_layers"]
    sizes = resident[next(iter(resident))]["block_bytes"]
    ks = {
        knee(compute_s=row["ms"] / 1e3, block_bytes=sizes, num_blocks=num_blocks, copy_gb_s=copy_gb_s)
        for row in resident.values()
    }
    for k in sorted(ks - {0, num_blocks}):
        yield _streamed(f"streamed, {k} resident", build, options, k=k)
    yield Side(
        "diffusers group offload",
        lambda folder: build(folder).to("cpu"),
        lambda module: module.enable_group_offload(  # type: ignore[operator]
            onload_device=options.device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=options.device.type == "cuda",
        ),
    )


def _streamed(name: str, build: Callable[..., nn.Module], options: Options, *, k: int) -> Side:
    """Built straight into the flat host buffers, as a checkpoint is loaded."""
    host = HostMemory(pin=options.device.type == "cuda")
    place = streaming_place(device=options.device, num_resident_blocks=k, host=host)
    return Side(
        name,
        lambda folder: build(folder, place=place),
        lambda module: apply_streaming(module, device=options.device, num_resident_blocks=k, host=host),
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
        milliseconds = time_call(partial(module, **inputs, return_dict=False), options)
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
    run(read_options(__doc__))
