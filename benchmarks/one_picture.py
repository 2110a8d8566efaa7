"""One picture of the embedded checkpoint on this machine's CPUs: through the whole service, and by diffusers alone.

    python -m benchmarks.one_picture [--pictures N]

The service is that of `make demo`: two ranks of one thread each behind HTTP. Diffusers runs the same prompt and steps
in this process, with one thread and with two. Both sides alternate, so that a busy machine slows all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from openai import OpenAI

from benchmarks.record import keep
from deployments.commands.foreground import ServeConfig, num_cpus_for
from deployments.local_ray import local_ray
from deployments.local_serve import find_port, run_app

ROOT = Path(__file__).parents[1]
PROMPT = "a red circle on a white background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10, help="pictures a side")
    options = parser.parse_args()
    config = ServeConfig.read(ROOT / "examples" / "shapes.yaml", host="127.0.0.1", port=0)
    port = find_port(config.host, config.port)
    with local_ray(num_cpus=num_cpus_for(config.settings)) as logs:
        run_app(config.settings, host=config.host, port=port, logs=logs, report=print)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        sides: dict[str, Callable[[int], Any]] = {
            "service, 2 ranks of 1 thread": lambda seed: client.images.generate(
                model="shapes", prompt=PROMPT, extra_body={"seed": seed}
            ),
            "diffusers, 1 thread": _diffusers(1),
            "diffusers, 2 threads": _diffusers(2),
        }
        rows = _time_alternating(sides, options.pictures)
    for row in rows:
        row["ratio_to_diffusers_1_thread"] = row["median_s"] / rows[1]["median_s"]
    keep("one_picture", rows)


def _diffusers(num_threads: int) -> Callable[[int], Any]:
    pipeline = WanPipeline.from_pretrained(ROOT / "checkpoints" / "shapes", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def make(seed: int) -> Any:
        torch.set_num_threads(num_threads)
        return pipeline(
            PROMPT, height=64, width=64, num_frames=1, num_inference_steps=20, guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    return make


def _time_alternating(sides: dict[str, Callable[[int], Any]], num_pictures: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(num_pictures + 1):
        for name, make in sides.items():
            start = time.perf_counter()
            make(seed)
            if seed:  # the first one of each side warms it up
                seconds[name].append(time.perf_counter() - start)
    return [
        {"what": name, "median_s": statistics.median(values), "slowest_s": max(values)}
        for name, values in seconds.items()
    ]


if __name__ == "__main__":
    main()
