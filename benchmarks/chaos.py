"""Kills, stops and overloads the parts of a running service, with a ledger of every request.

    python -m benchmarks.chaos [--faults NAME ...] [--count N] [--folder DIR]

A round sends pictures and picture jobs, does one fault while ranks are in mid-step, waits for every answer and for the
service to be whole again, and writes the round to the ledger (`chaos.jsonl`). A second run goes on where the ledger
ends. Pictures are compared to the byte with what the undisturbed service made. Nothing is waited for without an end: a
round after which the service does not come back is written down as such, and the next one has a new service.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos_client import Entry
from benchmarks.chaos_faults import FAULTS
from benchmarks.chaos_rounds import Fault, Place, Result
from benchmarks.chaos_site import Site
from benchmarks.record import RESULTS, commit, keep

_COMMIT = commit()
_ALWAYS = ("kind", "outcome", "num_answers")
_DEFAULTS = asdict(Entry("", "lost", 0))


class Sites:
    """The service of the running rounds: started when it is needed, anew after one that did not come back."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._site: Site | None = None
        self._place: Place | None = None

    def __enter__(self) -> "Sites":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def get(self, place: Place) -> Site:
        """A healthy service of a kind; there is one at a time."""
        if self._site is None or place is not self._place:
            self._stack.close()
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._site, self._place = self._stack.enter_context(place(folder)), place
        return self._site

    def drop(self, error: BaseException) -> None:
        """Ends a service that is beyond help."""
        self._site = None
        self._stack.__exit__(type(error), error, error.__traceback__)
        self._stack = ExitStack()


def run_round(fault: Fault, sites: Sites) -> dict[str, Any]:
    """One round as a line of the ledger."""
    site = sites.get(fault.place)
    begin = time.monotonic()
    try:
        result, trouble = fault.run(site), None
    except TimeoutError as error:
        result, trouble = Result([Entry("service", "lost", 0, str(error))], {}), error
    line = {
        "commit": _COMMIT,
        "seconds": round(time.monotonic() - begin, 1),
        "facts": {name: round(value, 3) for name, value in {"start_s": site.start_s, **result.facts}.items()},
        "entries": [_without_defaults(entry) for entry in result.entries],
    }
    if trouble is not None:
        sites.drop(trouble)
    return line


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The rounds done so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarize(rounds: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a fault: counts over its requests, and the median and greatest of what was measured."""
    by_fault: dict[str, list[dict[str, Any]]] = {}
    for done in rounds:
        by_fault.setdefault(done["fault"], []).append(done)
    return [_row(name, done) for name, done in by_fault.items()]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Does what is missing in the ledger, keeps and prints the rows, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--count", type=int, default=1000, help="at most so many rounds a fault, those kept included")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where ledger and figures are kept")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    ledger = options.folder / "chaos.jsonl"
    with Sites() as sites:
        for name in options.faults:
            wanted = min(options.count, FAULTS[name].num_rounds)
            while _num_rounds(ledger, name) < wanted:
                line = {"fault": name, **run_round(FAULTS[name], sites)}
                with ledger.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                outcomes = Counter(entry["outcome"] for entry in line["entries"])
                print(f"{name}: {dict(outcomes)} in {line['seconds']} s; {line['facts']}", flush=True)
    rows = summarize(read_ledger(ledger))
    keep("chaos", rows, folder=options.folder)
    return rows


def _num_rounds(ledger: Path, name: str) -> int:
    return sum(line["fault"] == name for line in read_ledger(ledger))


def _row(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    entries = [{**_DEFAULTS, **entry} for done in rounds for entry in done["entries"]]
    outcomes = Counter(entry["outcome"] for entry in entries)
    facts: dict[str, list[float]] = {}
    for done in rounds:
        for fact, value in done.get("facts", {}).items():
            facts.setdefault(fact, []).append(value)
    return {
        "fault": name,
        "rounds": len(rounds),
        "requests": len(entries),
        **{outcome: outcomes[outcome] for outcome in ("equal", "different", "refused", "failed", "lost", "left")},
        "lost_jobs": sum(entry["kind"] == "job" and entry["outcome"] in ("lost", "failed") for entry in entries),
        "answered_twice": sum(entry["num_answers"] > 1 for entry in entries),
        "sent_again": sum(entry["num_tries"] > 1 for entry in entries),
        "details": dict(Counter(f"{entry['kind']}: {entry['detail']}" for entry in entries if entry["detail"])),
        "facts": {
            fact: {"median": round(statistics.median(values), 3), "max": max(values)} for fact, values in facts.items()
        },
    }


def _without_defaults(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name in _ALWAYS or value != _DEFAULTS[name]}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the ledger has the rounds that were finished, and a next run goes on there")
