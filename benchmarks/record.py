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
    target = folder or Path(os.environ.get("OUT", RESULTS))
    target.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "commit": _commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "rows": rows,
    }
    (target / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(" | ".join(columns))
    for row in rows:
        print(" | ".join(_cell(row.get(column, "")) for column in columns))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
