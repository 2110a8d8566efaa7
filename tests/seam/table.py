"""The generated part of docs/seam.md: every case on two lanes, and the pipelines without a case.

`python -m tests.seam.table` writes it anew.
"""

from collections import defaultdict
from pathlib import Path

from tests.seam.cases import ALL_CASES
from tests.seam.equality import BATCHED_TOLERANCE, Comparison, compare_on_two_lanes
from tests.seam.guided_pipelines import guided_pipelines
from tests.seam.tiny import Case
from tests.seam.uncovered import uncovered_pipelines

PAGE = Path(__file__).parents[2] / "docs" / "seam.md"
BEGIN, END = "<!-- generated: tests/seam/table.py -->", "<!-- end of generated -->"


def generated_part() -> str:
    """Markdown: how many are covered, the table of cases, the table of those without one."""
    uncovered = _table_of_uncovered()  # first: it is quick, and fails where a reason is missing
    return "\n\n".join([_summary(), _table_of_cases(), uncovered])


def part_in_page() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def write_part(part: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{part}\n{END}{rest.partition(END)[2]}")


def _summary() -> str:
    guided = guided_pipelines()
    covered = {case.pipeline_class for case in ALL_CASES}
    return (
        f"{len(ALL_CASES)} cases of {len(covered)} pipeline classes; {len(guided)} classes of the installed diffusers "
        f"guide, {len(covered.intersection(guided))} of them are covered. Rows are calls times batch, in one run."
    )


def _table_of_cases() -> str:
    lines = ["| pipeline | style | equal | serial rows | rows a rank |", "| --- | --- | --- | --- | --- |"]
    for case in sorted(ALL_CASES, key=lambda case: case.name):
        lines.append(_row(case, compare_on_two_lanes(case)))
    return "\n".join(lines)


def _row(case: Case, result: Comparison) -> str:
    rows = ", ".join(map(str, result.rows))
    reason = f": {case.reason_not_halved}" if case.reason_not_halved else ""
    return f"| {case.name} | {case.style} | {_equality(case, result)} | {result.serial_rows} | {rows}{reason} |"


def _equality(case: Case, result: Comparison) -> str:
    """The tolerance that held, not the error: that one depends on the processor."""
    if not case.is_batched:
        return "to the bit" if result.relative_error == 0.0 else f"**no** ({result.relative_error:.0e})"
    return f"{BATCHED_TOLERANCE:.0e}" if result.relative_error <= BATCHED_TOLERANCE else "**no**"


def _table_of_uncovered() -> str:
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in uncovered_pipelines().items():
        by_reason[reason].append(name.removesuffix("Pipeline"))
    lines = ["| no case | why |", "| --- | --- |"]
    lines += [f"| {', '.join(names)} | {reason} |" for reason, names in by_reason.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    write_part(generated_part())
