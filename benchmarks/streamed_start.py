"""From files to the first result of a streamed Wan 14B: read into flat pinned buffers, or `from_pretrained` and
diffusers' group offloading.

    python -m benchmarks.streamed_start [--small]

The files are in memory on both sides.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import architectures as arch
from benchmarks.loading import write_checkpoint
from benchmarks.measuring import Options, free, peak_gib, read_options, scratch_in_memory, time_once
from benchmarks.record import keep
from workers.direct_load import load_component
from workers.stream_build import component_class
from workers.stream_engine import HostMemory
from workers.streaming import apply_streaming, streaming_place

NAME = "streamed_start"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a side."""
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_14B
    shape = arch.Shape(64, 64, 5, text_tokens=8) if options.is_small else arch.VIDEO_480P[9]
    inputs = arch.denoiser_inputs(architecture, shape, options.device, options.dtype)
    with scratch_in_memory() as name:
        folder = Path(name)
        write_checkpoint(architecture, folder, options)
        sides: dict[str, Callable[[], nn.Module]] = {
            "heliograph": lambda: _start_ours(architecture, folder, options),
            "from_pretrained, group offload": lambda: _start_diffusers(architecture, folder, options),
        }
        return [_row(side, start, inputs, options) for side, start in sides.items()]


def _row(side: str, start: Callable[[], nn.Module], inputs: dict[str, Any], options: Options) -> dict[str, Any]:
    free(options.device)
    start_s, module = time_once(start, options)
    with torch.no_grad():
        first_s, _ = time_once(lambda: module(**inputs, return_dict=False), options)
    return {
        "side": side, "start_s": start_s, "first_call_s": first_s, "total_s": start_s + first_s,
        "peak_gib": peak_gib(options.device),
    }  # fmt: skip


def _start_ours(architecture: arch.Architecture, folder: Path, options: Options) -> nn.Module:
    host = HostMemory(pin=options.device.type == "cuda")
    module = load_component(
        folder,
        library=architecture.library,
        class_name=architecture.class_name,
        dtype=options.dtype,
        device=options.device,
        place=streaming_place(device=options.device, num_resident_blocks=0, host=host),
    ).module
    apply_streaming(module, device=options.device, host=host)
    return module


def _start_diffusers(architecture: arch.Architecture, folder: Path, options: Options) -> nn.Module:
    model_class: Any = component_class(architecture.library, architecture.class_name)
    module = model_class.from_pretrained(folder, torch_dtype=options.dtype)
    module.enable_group_offload(
        onload_device=options.device, offload_device=torch.device("cpu"), offload_type="block_level",
        num_blocks_per_group=1, use_stream=options.device.type == "cuda",
    )  # fmt: skip
    return module  # type: ignore[no-any-return]


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
