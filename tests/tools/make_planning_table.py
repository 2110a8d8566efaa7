"""Writes the generated parts of docs/planning.md: the table of models and GPUs, what cannot be combined, the schema.

python -m tests.tools.make_planning_table
"""

import json
import re
import tempfile
from pathlib import Path

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import cluster_from_flags
from planner.errors import InfeasiblePlanError
from planner.incompatibilities import TABLE
from planner.plan import ComponentKind, Decoding, InfeasibleReport, Mode, Plan, PlanRequest, Residency
from planner.search import plan_group

DOCUMENT = Path(__file__).parents[2] / "docs" / "planning.md"
GPU_SIZES_GIB = (24, 40, 80, 141)
HOST_GIB = 512
LETTERS = {Residency.RESIDENT: "resident", Residency.OFFLOAD: "offload", Residency.SHARDED: "sharded"}


def main() -> None:
    """Rewrites the parts between the markers."""
    parts = {"models": models_table(), "incompatibilities": incompatibilities_table(), "schema": schema_text()}
    DOCUMENT.write_text(replace_parts(DOCUMENT.read_text(), parts))


def replace_parts(text: str, parts: dict[str, str]) -> str:
    """Puts each part between its `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, part in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text, flags=re.DOTALL)
    return text


def models_table() -> str:
    """Each skeleton on 1 and 2 GPUs of each size in each mode: degrees, the denoiser's residency and the GPU peak."""
    from tests.tools.skeletons import SKELETONS, write_skeleton

    rows = ["| model | GPUs | speed | auto | memory |", "| --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        for name in SKELETONS:
            checkpoint = read_checkpoint(str(write_skeleton(Path(folder), name)))
            for count in (1, 2):
                for gib in GPU_SIZES_GIB:
                    cells = [_cell(checkpoint, count, gib, mode) for mode in Mode]
                    rows.append(f"| {name} | {count} x {gib} GiB | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(checkpoint: Checkpoint, count: int, gib: int, mode: Mode) -> str:
    cluster = cluster_from_flags(gpus_per_node=count, gpu_type="H100", gpu_memory_gib=gib, host_memory_gib=HOST_GIB)
    try:
        plan = plan_group(checkpoint, cluster, PlanRequest(mode=mode))
    except InfeasiblePlanError:
        return "refused"
    return describe_plan(plan)


def describe_plan(plan: Plan) -> str:
    """`cfg 2, layerwise 12/40, tiles, 21.3 GiB`."""
    denoiser = next(c for c in plan.components if c.kind is ComponentKind.DENOISER)
    how = LETTERS.get(denoiser.residency) or f"layerwise {denoiser.num_resident_blocks}/{denoiser.num_blocks}"
    group = plan.group
    degrees = [f"{name} {n}" for name, n in (("cfg", group.cfg_degree), ("fsdp", group.fsdp_degree)) if n > 1]
    peak = max(plan.memory.gpu_peak_bytes) / 2**30
    tiles = ["tiles"] if plan.decoding is Decoding.TILES else []
    return ", ".join([*degrees, how, *tiles, f"{peak:.1f} GiB"])


def incompatibilities_table() -> str:
    """The planner's own table, so that the document cannot differ from it."""
    return "\n".join(["| name | refused because |", "| --- | --- |", *(f"| `{e.name}` | {e.reason} |" for e in TABLE)])


def schema_text() -> str:
    """JSON schemas of the two answers."""
    blocks = [json.dumps(model.model_json_schema(), indent=1) for model in (Plan, InfeasibleReport)]
    return "\n\n".join(f"```json\n{block}\n```" for block in blocks)


if __name__ == "__main__":
    main()
