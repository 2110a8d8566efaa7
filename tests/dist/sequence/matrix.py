"""All cases on two ranks, and their table in docs/sequence.md.

`python -m tests.dist.sequence.matrix` writes the table anew.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.dist.sequence.cases import CASES, find_case
from tests.dist.sequence.compare import TOLERANCE, compare_all
from tests.dist.weights.ranks import run_ranks

PAGE = Path(__file__).parents[3] / "docs" / "sequence.md"
BEGIN, END = "<!-- generated: tests/dist/sequence/matrix.py -->", "<!-- end of generated -->"


def run_matrix(folder: Path, *, num_ranks: int = 2, names: list[str] | None = None) -> list[list[dict[str, Any]]]:
    """Results by rank and case."""
    names = [case.name for case in CASES] if names is None else names
    return run_ranks(compare_all, folder, names, num_ranks=num_ranks, deadline_s=300)


def table_of(results: list[dict[str, Any]]) -> str:
    """Markdown: class, works, largest error for even and for uneven lengths, restriction."""
    lines = ["| class | works | error, even lengths | error, uneven lengths | restriction |", "| --- " * 5 + "|"]
    for result in sorted(results, key=lambda result: str(result["name"])):
        case = find_case(result["name"])
        works = all(result[size].get("relative", 1.0) <= TOLERANCE for size in ("even", "uneven"))
        even, uneven = (_error_text(result[size]) for size in ("even", "uneven"))
        restriction = f"refused: {case.excluded}" if case.excluded else _heads_text(case.model.class_name)
        lines.append(f"| {case.name} | {'yes' if works else '**no**'} | {even} | {uneven} | {restriction} |")
    return "\n".join(lines)


def table_in_page() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def write_table(table: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def _error_text(found: dict[str, Any]) -> str:
    """In powers of ten: the digits differ between processors."""
    if "error" in found:
        return "fails"
    relative = found["relative"]
    return "0" if relative == 0 else next((f"< {limit:g}" for limit in (1e-6, 1e-5) if relative < limit), "**wrong**")


def _heads_text(class_name: str) -> str:
    return "the degree divides `num_attention_heads`" + ("; at most 40 blocks" if "Helios" in class_name else "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_table(table_of(run_matrix(Path(scratch))[0]))
