"""Whether the picture is right however a group is placed: `checkpoints/shapes`, judged from its pixels.

    python -m benchmarks.judged_placements [--num-prompts N] [--only NAME ...] [--device cuda]

Each placement is a group by the whole path (planner, placement group, rank actors), ranks on a GPU share it. All are
asked for the same pictures and 9-frame clips of combinations that were held out of training, with the same seeds; the
last row turns guidance off, which has to show.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.group_checkpoints import SHAPES
from benchmarks.group_runs import ALONE, LANES, SHARDS
from benchmarks.record import keep
from deployments.local_ray import local_ray
from planner.checkpoint import read_checkpoint
from planner.cluster import cluster_of_this_machine
from planner.plan import PlanRequest
from planner.search import plan_group
from workers.calls import GenerateCall
from workers.group import WorkerGroup

sys.path.insert(0, str(SHAPES.parent))  # the judge stands beside the checkpoint, without a package

import judge_shapes
from shapes_data import CLIP_FRAMES, IMAGE_SIZE, Attributes, held_out_prompts

NAME = "judged_placements"
BATCH = 20
DEFAULTS: dict[str, Any] = json.loads((SHAPES / "heliograph.json").read_text())["defaults"]
STREAMED = {"residency": {name: {"residency": "layerwise"} for name in ("transformer", "text_encoder")}}
PLACEMENTS: Mapping[str, dict[str, Any]] = {
    "1 rank, float32": {**ALONE},
    "1 rank, bfloat16": {**ALONE, "dtype": "bfloat16"},
    "2 ranks, CFG lanes": {**LANES},
    "2 ranks, sharded": {**SHARDS},
    "1 rank, streamed": {**ALONE, **STREAMED},
    "2 ranks, CFG lanes, streamed": {**LANES, **STREAMED},
    "1 rank, float32, guidance off": {**ALONE, "guidance_scale": 1.0},
}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Judges the placements, keeps and prints the rows, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=200, help="of each kind; 200 give about 2 %% of error")
    parser.add_argument("--only", nargs="+", choices=PLACEMENTS, default=tuple(PLACEMENTS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where the figures are kept")
    options = parser.parse_args(arguments)
    rows = []
    with local_ray(num_cpus=8, num_gpus=int(options.device == "cuda")):
        for name in options.only:
            rows += judge(name, num_prompts=options.num_prompts, device=options.device)
            print(rows[-2:], flush=True)
    keep(NAME, rows, folder=options.folder)
    return rows


def judge(name: str, *, num_prompts: int, device: str) -> list[dict[str, Any]]:
    """A row each for pictures and clips: the share of prompts for which an attribute is right."""
    choices = {"dtype": "float32", **PLACEMENTS[name]}
    guidance = choices.pop("guidance_scale", DEFAULTS["guidance_scale"])
    shape = {"width": IMAGE_SIZE, "height": IMAGE_SIZE, "num_frames": CLIP_FRAMES}
    wishes = {
        "device": device,
        "share_gpu": device == "cuda",
        "compile": "none",
        "cpus_per_rank": 0.5,
        **shape,
        **choices,
    }
    plan = plan_group(read_checkpoint(str(SHAPES)), cluster_of_this_machine(), PlanRequest.model_validate(wishes))
    placed = ", ".join(f"{component.name}={component.residency}" for component in plan.components)
    group = WorkerGroup.start(plan, timeout_s=300.0)
    try:
        rows = []
        for kind, num_frames in (("pictures", 1), ("videos", CLIP_FRAMES)):
            prompts = held_out_prompts(num_prompts, seed=0, with_motion=num_frames > 1)
            render = partial(_render, group, prompts, num_frames=num_frames, guidance=guidance)
            shares, _ = judge_shapes.score(prompts, render())
            rows.append({"placement": name, "kind": kind, "prompts": num_prompts, **shares, "plan": placed})
        return rows
    finally:
        group.shutdown()


def _render(group: WorkerGroup, prompts: list[Attributes], *, num_frames: int, guidance: float) -> Iterator[Any]:
    """Clips (F, H, W, 3) in the order of the prompts."""
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        asked = {
            "prompt": [prompt.prompt() for prompt in batch], "height": IMAGE_SIZE, "width": IMAGE_SIZE,
            "num_frames": num_frames, "guidance_scale": guidance,
            "num_inference_steps": DEFAULTS["num_inference_steps"],
        }  # fmt: skip
        output = group.generate(GenerateCall(asked, seed=first)).output
        yield from output.reshape(len(batch), num_frames, IMAGE_SIZE, IMAGE_SIZE, 3).astype(np.float32) / 255.0


if __name__ == "__main__":
    main()
