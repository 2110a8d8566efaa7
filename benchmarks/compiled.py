"""One denoiser call as mode `speed` makes it (compiled blocks, fastest attention kernel) against diffusers as it is.

    python -m benchmarks.compiled [--small] [--repeats N]

The floor is the operations counted in an eager call over the rates of a large matrix product and of the fastest
attention kernel, both measured here; `share_of_floor` is the floor over the time. `difference` is the largest, against
the eager result's largest value.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import architectures as arch
from benchmarks.measuring import (
    Options,
    attention_tflops,
    free,
    matmul_tflops,
    peak_gib,
    read_options,
    time_call,
    time_once,
)
from benchmarks.record import keep
from planner.execution import choose_attention, choose_compilation
from planner.plan import Compilation, Mode, PlanRequest
from workers.attention_kernels import choose_attention_kernel
from workers.compilation import compile_blocks
from workers.norms import cache_norms

NAME = "compiled"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a model and side."""
    rows: list[dict[str, Any]] = []
    for architecture, shape in _cases(options):
        rows += _compare(architecture, shape, options)
        free(options.device)
    return rows


def _cases(options: Options) -> list[tuple[arch.Architecture, arch.Shape]]:
    if options.is_small:
        small = arch.Shape(64, 64, text_tokens=8)
        return [(arch.SMALL_WAN, small), (arch.SMALL_FLUX, small), (arch.SMALL_QWEN, small)]
    return [
        (arch.WAN_1_3B, arch.VIDEO_480P[81]),
        (arch.FLUX_DEV, arch.PICTURE),
        (arch.QWEN_IMAGE, arch.Shape(1024, 1024, text_tokens=128)),
    ]


def _compare(architecture: arch.Architecture, shape: arch.Shape, options: Options) -> list[dict[str, Any]]:
    inputs = arch.denoiser_inputs(architecture, shape, options.device, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        module = arch.build_random(architecture, Path(folder), device=options.device, dtype=options.dtype)
    free(options.device)
    floor_ms = _floor_ms(module, inputs, architecture, options)
    with torch.no_grad():
        expected = module(**inputs, return_dict=False)[0]
    rows = [_row(architecture, "diffusers", module, inputs, floor_ms, expected, options)]
    device = options.device.type
    request = PlanRequest(mode=Mode.SPEED)
    backend = choose_attention_kernel(
        module, choose_attention(request, device=device), device=options.device, dtype=options.dtype
    )
    cache_norms(module)
    if choose_compilation(request, device=device) is Compilation.BLOCKS or options.is_small:
        compile_blocks(module, backend="aot_eager" if options.is_small else "inductor")
    rows.append(_row(architecture, f"speed ({backend})", module, inputs, floor_ms, expected, options))
    return rows


def _row(
    architecture: arch.Architecture,
    side: str,
    module: nn.Module,
    inputs: dict[str, Any],
    floor_ms: float,
    expected: torch.Tensor,
    options: Options,
) -> dict[str, Any]:
    with torch.no_grad():
        first_s, result = time_once(lambda: module(**inputs, return_dict=False)[0], options)
    difference = float((result - expected).abs().max() / expected.abs().max())
    milliseconds = time_call(lambda: module(**inputs, return_dict=False), options, num_warm=2)
    return {
        "model": architecture.name, "side": side, "ms": milliseconds, "floor_ms": floor_ms,
        "share_of_floor": floor_ms / milliseconds, "first_call_s": first_s, "difference": difference,
        "peak_gib": peak_gib(options.device),
    }  # fmt: skip


def _floor_ms(module: nn.Module, inputs: dict[str, Any], architecture: arch.Architecture, options: Options) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(**inputs, return_dict=False)
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "attention" in str(name))
    products = sum(counts.values()) - attention
    heads = architecture.config["num_attention_heads"]
    tokens = _tokens(architecture, inputs)
    rate = attention_tflops(options, tokens=tokens, heads=heads)
    return (products / matmul_tflops(options) + attention / rate) / 1e9


def _tokens(architecture: arch.Architecture, inputs: dict[str, Any]) -> int:
    hidden = inputs["hidden_states"]
    if architecture.class_name == "WanTransformer3DModel":
        return int(hidden[0, 0].numel() // 4)
    return int(hidden.shape[1] + inputs["encoder_hidden_states"].shape[1])


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
