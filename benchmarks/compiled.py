"""One denoiser call as mode `speed` makes it (compiled blocks, fastest attention kernel) against diffusers as it is.

    python -m benchmarks.compiled [--small] [--repeats N]

The floor is the operations counted in an eager call over the rates of a large matrix product and of the fastest
attention kernel, both measured here; `share_of_floor` is the floor over the time. `products_ms` is what the call's own
matrix products take one by one at their own shapes, `attention_ms` the same of its attention: less than their sum needs
other kernels. `difference` is the largest, against the eager result's largest value. Where the time of the compiled
call goes is kept as `compiled_kernels.json`.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
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
NUM_KERNELS = 12


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds that a call cannot beat: by the card's best rates, and its parts at their own shapes."""

    best_ms: float
    products_ms: float
    attention_ms: float


def run(options: Options) -> list[dict[str, Any]]:
    """One row a model and side."""
    rows: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []
    for architecture, shape in _cases(options):
        rows += _compare(architecture, shape, options, kernels)
        free(options.device)
    if kernels:
        keep("compiled_kernels", kernels)
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


def _compare(
    architecture: arch.Architecture, shape: arch.Shape, options: Options, kernels: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    inputs = arch.denoiser_inputs(architecture, shape, options.device, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        module = arch.build_random(architecture, Path(folder), device=options.device, dtype=options.dtype)
    free(options.device)
    floor = _floor(module, inputs, architecture, options)
    with torch.no_grad():
        expected = module(**inputs, return_dict=False)[0]
    rows = [_row(architecture, "diffusers", module, inputs, floor, expected, options)]
    device = options.device.type
    request = PlanRequest(mode=Mode.SPEED)
    backend = choose_attention_kernel(
        module, choose_attention(request, device=device, sequence_degree=1), device=options.device, dtype=options.dtype
    )
    cache_norms(module)
    if choose_compilation(request, device=device, sequence_degree=1) is Compilation.BLOCKS or options.is_small:
        compile_blocks(module, backend="aot_eager" if options.is_small else "inductor")
    rows.append(_row(architecture, f"speed ({backend})", module, inputs, floor, expected, options))
    if options.device.type == "cuda":
        kernels += _kernels(architecture, module, inputs)
    return rows


def _row(
    architecture: arch.Architecture,
    side: str,
    module: nn.Module,
    inputs: dict[str, Any],
    floor: Floor,
    expected: torch.Tensor,
    options: Options,
) -> dict[str, Any]:
    with torch.no_grad():
        first_s, result = time_once(lambda: module(**inputs, return_dict=False)[0], options)
    difference = float((result - expected).abs().max() / expected.abs().max())
    milliseconds = time_call(lambda: module(**inputs, return_dict=False), options, num_warm=2)
    return {
        "model": architecture.name, "side": side, "ms": milliseconds, "floor_ms": floor.best_ms,
        "share_of_floor": floor.best_ms / milliseconds, "products_ms": floor.products_ms,
        "attention_ms": floor.attention_ms, "first_call_s": first_s, "difference": difference,
        "peak_gib": peak_gib(options.device),
    }  # fmt: skip


def _floor(module: nn.Module, inputs: dict[str, Any], architecture: arch.Architecture, options: Options) -> Floor:
    counter = FlopCounterMode(display=False)
    shapes = _watch_products(module)
    with torch.no_grad(), counter:
        module(**inputs, return_dict=False)
    products_ms = _time_products(shapes(), options)
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "attention" in str(name))
    products = sum(counts.values()) - attention
    rate = attention_tflops(
        options, tokens=_tokens(architecture, inputs), heads=architecture.config["num_attention_heads"]
    )
    attention_ms = attention / rate / 1e9
    return Floor(products / matmul_tflops(options) / 1e9 + attention_ms, products_ms, attention_ms)


def _watch_products(module: nn.Module) -> Callable[[], Counter[tuple[int, int, int]]]:
    """Counts (rows, inputs, outputs) of every linear layer's calls; the function ends the watch."""
    seen: Counter[tuple[int, int, int]] = Counter()

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        seen[given[0].numel() // layer.in_features, layer.in_features, layer.out_features] += 1

    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]

    def end() -> Counter[tuple[int, int, int]]:
        for handle in handles:
            handle.remove()
        return seen

    return end


def _time_products(shapes: Counter[tuple[int, int, int]], options: Options) -> float:
    total_ms = 0.0
    for (rows, inputs, outputs), count in shapes.items():
        layer = nn.Linear(inputs, outputs, device=options.device, dtype=options.dtype)
        values = torch.randn(rows, inputs, device=options.device, dtype=options.dtype)

        def run(layer: nn.Linear = layer, values: torch.Tensor = values) -> None:
            for _ in range(4):
                layer(values)

        total_ms += count * time_call(run, options, num_warm=2) / 4
    return total_ms


def _kernels(architecture: arch.Architecture, module: nn.Module, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels that take most of a call."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as profiled:
        module(**inputs, return_dict=False)
        torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    total_ms = sum(event.self_device_time_total for event in events) / 1e3
    return [
        {"model": architecture.name, "kernel": "all", "calls": sum(e.count for e in events), "ms": total_ms},
        *(
            {
                "model": architecture.name, "kernel": event.key[:90], "calls": event.count,
                "ms": event.self_device_time_total / 1e3,
            }
            for event in events[:NUM_KERNELS]
        ),
    ]  # fmt: skip


def _tokens(architecture: arch.Architecture, inputs: dict[str, Any]) -> int:
    hidden = inputs["hidden_states"]
    if architecture.class_name == "WanTransformer3DModel":
        return int(hidden[0, 0].numel() // 4)
    return int(hidden.shape[1] + inputs["encoder_hidden_states"].shape[1])


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
