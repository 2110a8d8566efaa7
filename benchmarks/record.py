"""Keeps a benchmark's figures as JSON with the hardware and the commit, and prints them as a table."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average_1min": round(os.getloadavg()[0], 2),  # a benchmark's own load, or somebody else's as well
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def keep(name: str, rows: list[dict[str, Any]], *, folder: Path | None = None) -> None:
    """Writes `NAME.json` (into `$OUT` if that is set) and prints the rows."""
    write(name, rows, folder=folder)
    print_table(rows)


def write(name: str, rows: list[dict[str, Any]], *, folder: Path | None = None) -> None:
    """Writes `NAME.json`, as `keep`; a file that is there already is replaced as a whole."""
    target = folder or Path(os.environ.get("OUT", RESULTS))
    target.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "rows": rows,
    }
    draft = target / f"{name}.json.part"
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(target / f"{name}.json")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table for each `section` of the rows, with the columns that it has."""
    for section in dict.fromkeys(row["section"] for row in rows):
        print(f"\n== {section}")
        print_table([{key: row[key] for key in row if key != "section"} for row in rows if row["section"] == section])


def print_table(rows: list[dict[str, Any]]) -> None:
    """One table with the columns of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(" | ".join(columns))
    for row in rows:
        print(" | ".join(_cell(row.get(column, "")) for column in columns))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def commit() -> str:
    """The commit of the working tree, as `git describe` says it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
