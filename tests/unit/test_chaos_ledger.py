"""The ledger of the chaos benchmark: what is counted, and that a second run does only what is missing."""

import json

from benchmarks import chaos
from benchmarks.chaos_faults import FAULTS


def entry(kind, outcome, num_answers, detail=""):
    return {"kind": kind, "outcome": outcome, "num_answers": num_answers, "detail": detail}


def test_ledger_that_is_complete_starts_nothing(tmp_path):
    lines = [json.dumps({"fault": name, "entries": [entry("picture", "equal", 1)]}) for name in FAULTS]
    (tmp_path / "chaos.jsonl").write_text("\n".join(lines) + "\n")
    rows = chaos.main(["--count", "1", "--folder", str(tmp_path)])
    assert [row["fault"] for row in rows] == list(FAULTS)
    assert json.loads((tmp_path / "chaos.json").read_text())["rows"] == rows


def test_rows_count_what_was_lost_wrong_or_answered_twice():
    entries = [
        entry("picture", "equal", 1), entry("job", "equal", 1), entry("job", "lost", 0, "still queued"),
        entry("job", "failed", 0, "out_of_memory"), entry("job", "different", 2),
        entry("picture", "lost", 0, "ReadError"),
    ]  # fmt: skip
    (row,) = chaos.summarize([{"fault": "overload", "entries": entries}])
    assert (row["rounds"], row["requests"], row["equal"], row["different"], row["lost"]) == (1, 6, 2, 1, 2)
    assert (row["lost_jobs"], row["answered_twice"]) == (2, 1)
    assert row["details"]["job: still queued"] == 1
