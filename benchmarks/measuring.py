"""How the GPU benchmarks measure: options, times by events, peaks, and the machine's own rates."""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Options:
    """Where and how much to measure. `is_small`: tiny models, on a CPU, to try the script itself."""

    device: torch.device
    is_small: bool
    num_repeats: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16


def read_options(description: str | None, arguments: list[str] | None = None) -> Options:
    """The options that every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    return make_options(parser.parse_args(arguments))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU, to try the script itself")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the median counts")


def make_options(parsed: argparse.Namespace) -> Options:
    if not parsed.small and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --small tries the script on the CPU")
    device = torch.device("cpu") if parsed.small else torch.device("cuda", 0)
    return Options(device, parsed.small, 1 if parsed.small else parsed.repeats)


def time_call(call: Callable[[], Any], options: Options, *, num_warm: int = 1) -> float:
    """Median milliseconds of a call, after `num_warm` that do not count."""
    milliseconds: list[float] = []
    with torch.no_grad():
        for index in range(num_warm + options.num_repeats):
            synchronize(options.device)
            start = time.perf_counter()
            call()
            synchronize(options.device)
            if index >= num_warm:
                milliseconds.append(1e3 * (time.perf_counter() - start))
    return statistics.median(milliseconds)


def time_once(call: Callable[[], Any], options: Options) -> tuple[float, Any]:
    """Seconds and result of one call."""
    synchronize(options.device)
    start = time.perf_counter()
    result = call()
    synchronize(options.device)
    return time.perf_counter() - start, result


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Gives memory back before the next side is measured; call it after the last reference is gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # the statistics of a device that nothing has used yet cannot be reset
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Most device memory in tensors since the last `free`."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def scratch_in_memory() -> "tempfile.TemporaryDirectory[str]":
    """A folder in memory where there is one: holes of files take no room there, and all reads are warm."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def pinned_copy_gb_s(options: Options) -> float:
    """GB/s of one pinned copy to the device."""
    size = 2**20 if options.is_small else 2**30
    is_cuda = options.device.type == "cuda"
    source = torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda)
    target = torch.empty(size, dtype=torch.uint8, device=options.device)
    return size / time_call(lambda: target.copy_(source, non_blocking=True), options) / 1e6


def matmul_tflops(options: Options) -> float:
    """TFLOP/s of a square product in the options' dtype."""
    size = 256 if options.is_small else 8192
    left = torch.randn(size, size, device=options.device, dtype=options.dtype)
    return 2 * size**3 / time_call(lambda: left @ left, options, num_warm=3) / 1e9


def attention_tflops(options: Options, *, tokens: int, heads: int, head_dim: int = 128) -> float:
    """TFLOP/s of torch's fastest attention kernel at this size; the best of those that run."""
    if options.is_small:
        tokens, heads, head_dim = 64, 2, 32
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = torch.randn(1, heads, tokens, head_dim, device=options.device, dtype=options.dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    best = 0.0
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        if best and backend is SDPBackend.MATH:
            continue
        try:
            with sdpa_kernel(backend):
                milliseconds = time_call(lambda: attend(query, query, query), options, num_warm=3)
        except RuntimeError:
            continue
        best = max(best, 4 * heads * tokens**2 * head_dim / milliseconds / 1e9)
    return best
