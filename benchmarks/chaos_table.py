"""The kept figures of the chaos benchmark as the table of docs/faults.md.

python -m benchmarks.chaos_table
"""

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.record import RESULTS

_HEAD = "| fault | rounds | requests | right | refused | lost | wrong | twice | sent again | measured |"
_FACTS = {
    "seen_s": "seen",
    "noticed_s": "Ray noticed",
    "restored_s": "back",
    "rollover_s": "rolled over",
    "free_s": "next answer",
    "num_deaths": "deaths",
    "refused_p99_s": "refused p99",
    "accepted_p99_s": "accepted p99",
    "queueing_s": "a full queue alone",
}


def as_markdown(rows: Iterable[dict[str, Any]]) -> str:
    """One line a fault. `right` counts answers equal to the byte; `lost` what got no answer, and jobs that failed."""
    lines = [_HEAD, "|" + " --- |" * _HEAD.count(" | ") + " --- |"]
    for row in rows:
        lost = row["lost"] + row["failed"]
        cells = (
            row["fault"].replace("_", " "), row["rounds"], row["requests"], row["equal"], row["refused"], lost,
            row["different"], row["answered_twice"], row["sent_again"], _measured(row["facts"]),
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _measured(facts: dict[str, dict[str, float]]) -> str:
    parts = []
    for name, words in _FACTS.items():
        if name in facts:
            unit = " s" if name.endswith("_s") else ""
            parts.append(f"{words} {facts[name]['median']:.3g} (at most {facts[name]['max']:.3g}){unit}")
    return "; ".join(parts)


if __name__ == "__main__":
    print(as_markdown(json.loads((RESULTS / "chaos.json").read_text())["rows"]))
