"""The full matrix: every class with a tiny configuration, sharded on two ranks; and its table in docs/weights.md.

`python -m tests.dist.weights.matrix` writes the table anew.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from tests.dist.weights.compare import compare_one, write_checkpoint
from tests.dist.weights.ranks import run_ranks
from tests.dist.weights.tiny_models import TinyModel, all_models, find_model

PAGE = Path(__file__).parents[3] / "docs" / "weights.md"
BEGIN, END = "<!-- generated: tests/dist/weights/matrix.py -->", "<!-- end of generated -->"


def run_matrix(folder: Path, *, deadline_s: float = 540) -> list[dict[str, Any]]:
    """Results of rank 0 and of rank 1 joined: equal only if both are."""
    for model in all_models():
        write_checkpoint(model, folder / model.class_name)
    names = [model.class_name for model in all_models()]
    per_rank = run_ranks(compare_each, folder, names, str(folder), deadline_s=deadline_s)
    joined = []
    for first, second in zip(*per_rank, strict=True):
        joined.append({**first, "equal": first["equal"] and second["equal"]})
    return joined


def compare_each(mesh: DeviceMesh, names: list[str], folder: str) -> list[dict[str, Any]]:
    """As `compare_all`, but a class that fails is reported with its error (the same one on each rank)."""
    return [_compare_or_report(mesh, find_model(name), Path(folder) / name) for name in names]


def table_of(results: list[dict[str, Any]]) -> str:
    """Markdown: class, rule, number of blocks, loaded by, equal."""
    lines = ["| class | decided by | blocks | loaded by | equal to the bit |", "| --- | --- | --- | --- | --- |"]
    for result in sorted(results, key=lambda result: result["name"]):
        equal = "yes" if result["equal"] and result["meaningful"] else "**no**"
        lines.append(
            f"| {result['name']} | {result['rule']} | {result['num_blocks']} | {result['loaded_by']} | {equal} |"
        )
    return "\n".join(lines)


def table_in_page() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def write_table(table: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def _compare_or_report(mesh: DeviceMesh, model: TinyModel, folder: Path) -> dict[str, Any]:
    try:
        return compare_one(mesh, model, folder)
    except Exception as error:  # a cell of the table
        return {
            "name": model.class_name, "rule": f"{type(error).__name__}: {error}"[:200], "num_blocks": 0,
            "loaded_by": "-", "equal": False, "meaningful": False, "bytes_read": 0, "whole_bytes": 0,
        }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_table(table_of(run_matrix(Path(scratch))))
