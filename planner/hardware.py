"""GPU types: memory, rates and bandwidths, and where each number is from."""

import re
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One type of GPU.

    Attributes:
        name: Ray's accelerator type where it has one.
        memory_bytes: memory that CUDA reports, not the marketing figure.
        matrix_tflops: dense 16-bit matrix products, TFLOP/s that are reached, not the peak.
        attention_tflops: attention at head dim 128, TFLOP/s that are reached.
        copy_gb_s: pinned host to device, GB/s.
        memory_tb_s: device memory bandwidth that is reached, TB/s.
        source: where the figures are from.
    """

    name: str
    memory_bytes: int
    matrix_tflops: float
    attention_tflops: float
    copy_gb_s: float
    memory_tb_s: float
    source: str


_FITTED = (
    "fitted to measured calls on one H100 80GB (Wan 1.3B, Wan 14B at three lengths, FLUX.1-dev, Qwen-Image; eager, and "
    "compiled but for two of the lengths): within 6 %"
)
_SHEET = "data sheet peak x 0.8 (the H100's measured share of its peak); copy: 0.83 of the PCIe rate"
_GPUS = (
    Gpu("H100", 81559 * MIB, 777.0, 585.0, 53.0, 2.7, _FITTED),
    Gpu("H200", 143771 * MIB, 777.0, 585.0, 53.0, 3.8, f"{_FITTED}; memory and its bandwidth: the H200's"),
    Gpu("B200", 183359 * MIB, 1800.0, 840.0, 53.0, 6.4, _SHEET),
    Gpu("A100-80G", 81920 * MIB, 250.0, 170.0, 26.0, 1.6, _SHEET),
    Gpu("A100-40G", 40960 * MIB, 250.0, 170.0, 26.0, 1.2, _SHEET),
    Gpu("L40S", 46068 * MIB, 290.0, 140.0, 26.0, 0.69, _SHEET),
    Gpu("L4", 23034 * MIB, 97.0, 45.0, 13.0, 0.24, _SHEET),
    Gpu("A10G", 23028 * MIB, 56.0, 40.0, 26.0, 0.48, _SHEET),
    Gpu("T4", 15360 * MIB, 52.0, 20.0, 13.0, 0.25, _SHEET),
    Gpu("RTX4090", 24564 * MIB, 132.0, 90.0, 26.0, 0.8, _SHEET),
    Gpu("V100", 32768 * MIB, 100.0, 40.0, 13.0, 0.72, _SHEET),
)
_ALIASES = {"A100": "A100-40G", "A10": "A10G", "H100-80G": "H100", "H10080GB": "H100"}
# Order matters: `L40S` before `L4`, `A100` before `A10`, and `H200` shares nothing with `H100`.
_PRODUCT_NAMES = (
    (r"H200|GH200.*144", "H200"),
    (r"H100|GH200", "H100"),
    (r"B200", "B200"),
    (r"A100.*80", "A100-80G"),
    (r"A100", "A100-40G"),
    (r"L40S", "L40S"),
    (r"\bL4\b", "L4"),
    (r"\bA10G?\b", "A10G"),
    (r"\bT4\b", "T4"),
    (r"RTX\s?4090", "RTX4090"),
    (r"V100", "V100"),
)


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a type (`H100`, `A100-80G`) or product name (`NVIDIA H100 80GB HBM3`); None if it is not known."""
    wanted = _ALIASES.get(name.upper(), name.upper())
    for gpu in _GPUS:
        if gpu.name.upper() == wanted:
            return gpu
    for pattern, target in _PRODUCT_NAMES:
        if re.search(pattern, name, re.IGNORECASE):
            return next(gpu for gpu in _GPUS if gpu.name == target)
    return None


def gpu_names() -> tuple[str, ...]:
    """Names of the types in the table."""
    return tuple(gpu.name for gpu in _GPUS)
