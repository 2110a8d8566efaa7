"""What cached float32 casts save a norm: bfloat16 parameters, computed in float32, at one token and at many.

    python -m benchmarks.norms_saving [--small] [--repeats N]

A thousand calls are timed together; at few tokens a norm costs its kernel launches.
"""

from typing import Any

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21ZeroCenterRMSNorm
from torch import nn

from benchmarks.measuring import Options, read_options, time_call
from benchmarks.record import keep
from workers.norms import cache_norms

NAME = "norms_saving"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a norm and number of tokens."""
    num_calls = 10 if options.is_small else 1000
    tokens = (1, 64) if options.is_small else (1, 512, 4096)
    makers = {"FP32LayerNorm": FP32LayerNorm, "QwenImage21ZeroCenterRMSNorm": QwenImage21ZeroCenterRMSNorm}
    return [
        _compare(name, make, width, count, num_calls, options)
        for name, make, width in (
            ("FP32LayerNorm", makers["FP32LayerNorm"], 3072),
            ("QwenImage21ZeroCenterRMSNorm", makers["QwenImage21ZeroCenterRMSNorm"], 128),
        )
        for count in tokens
    ]


def _compare(name: str, make: Any, width: int, tokens: int, num_calls: int, options: Options) -> dict[str, Any]:
    norm = make(width).to(options.device, torch.bfloat16).requires_grad_(False)
    values = torch.randn(1, tokens, width).to(options.device, torch.bfloat16)
    plain_us, expected = _time(norm, values, num_calls, options)
    cache_norms(nn.Sequential(norm))
    cached_us, result = _time(norm, values, num_calls, options)
    return {
        "norm": name, "tokens": tokens, "plain_us": plain_us, "cached_us": cached_us, "ratio": cached_us / plain_us,
        "equal": torch.equal(result, expected),
    }  # fmt: skip


def _time(norm: nn.Module, values: torch.Tensor, num_calls: int, options: Options) -> tuple[float, torch.Tensor]:
    def many() -> None:
        for _ in range(num_calls):
            norm(values)

    milliseconds = time_call(many, options)
    with torch.no_grad():
        return 1e3 * milliseconds / num_calls, norm(values)


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
