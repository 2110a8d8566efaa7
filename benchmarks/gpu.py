"""Runs the benchmarks that need a GPU, one after the other, each in a process of its own, and prints all tables last.

    python -m benchmarks.gpu [--only NAME ...] [--small] [--repeats N] [--limit-s SECONDS]

The longest are end_to_end, limited_gpu and streaming (over 4 minutes on one H100): give each a run of its own. They
are sized for 78 GiB of GPU memory and about 100 GiB of host memory.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measuring import add_options
from benchmarks.record import RESULTS, print_table

NAMES = (
    "norms_saving",
    "sharded_alone",
    "compiled",
    "streaming",
    "streamed_start",
    "loading",
    "limited_gpu",
    "end_to_end",
    "decoding",
)


def main() -> int:
    """Exit status: the number of benchmarks that failed or ran out of time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--limit-s", type=float, default=560.0, help="for all together; what is left over is skipped")
    options = parser.parse_args()
    end = time.monotonic() + options.limit_s
    outcomes = {name: _run(name, options, end - time.monotonic()) for name in options.only}
    folder = Path(os.environ.get("OUT", RESULTS))
    for name, outcome in outcomes.items():
        print(f"\n== {name}: {outcome}", flush=True)
        file = folder / f"{name}.json"
        if outcome == "done" and file.is_file():
            print_table(json.loads(file.read_text())["rows"])
    return sum(outcome != "done" for outcome in outcomes.values())


def _run(name: str, options: argparse.Namespace, left_s: float) -> str:
    if left_s <= 0:
        return "skipped, no time left"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--repeats", str(options.repeats)]
    command += ["--small"] if options.small else []
    try:
        status = subprocess.run(command, check=False, timeout=left_s).returncode
    except subprocess.TimeoutExpired:
        return "stopped, out of time"
    return "done" if status == 0 else f"failed with status {status}"


if __name__ == "__main__":
    sys.exit(main())
