"""A Wan2.2-A14B sized request, 81 frames 480p, with `auto` and with diffusers' model and group offloading.

    python -m benchmarks.end_to_end [--small]

Two steps of two branches, one with each denoiser: what a step costs shows, and a whole run of 40 would be the same.
"""

from typing import Any

from benchmarks.architectures import wan22_request
from benchmarks.measuring import Options, read_options
from benchmarks.record import keep
from benchmarks.whole_request import SIDES, measure_side

NAME = "end_to_end"


def run(options: Options) -> list[dict[str, Any]]:
    """One row a side."""
    request = wan22_request(is_small=options.is_small)
    return [measure_side(side, request, options, limit_gib=None) for side in SIDES]


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
