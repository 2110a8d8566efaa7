"""FLUX.1-dev and Qwen-Image sized requests, 1024 x 1024, on a GPU that has 24 GiB: `auto` and diffusers' offloading.

    python -m benchmarks.limited_gpu [--small]

The rest of the GPU is allocated away before the requests run.
"""

from typing import Any

from benchmarks.architectures import flux_request, qwen_request
from benchmarks.measuring import Options, read_options
from benchmarks.record import keep
from benchmarks.whole_request import SIDES, measure_side

NAME = "limited_gpu"
LIMIT_GIB = 24.0


def run(options: Options) -> list[dict[str, Any]]:
    """One row a request and side."""
    requests = [flux_request(is_small=options.is_small), qwen_request(is_small=options.is_small)]
    return [measure_side(side, request, options, limit_gib=LIMIT_GIB) for request in requests for side in SIDES]


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
