"""The ledger of the chaos benchmark: what is counted, and that a second run does only what is missing."""

import json
from types import SimpleNamespace

import httpx

from benchmarks import chaos, chaos_client
from benchmarks.chaos_faults import FAULTS
from benchmarks.chaos_rounds import Fault
from benchmarks.chaos_table import as_markdown


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
    entries[0]["num_tries"] = 2
    (row,) = chaos.summarize([{"fault": "overload", "entries": entries, "facts": {"seen_s": 0.5}}])
    assert (row["rounds"], row["requests"], row["equal"], row["different"], row["lost"]) == (1, 6, 2, 1, 2)
    assert (row["lost_jobs"], row["answered_twice"]) == (2, 1)
    assert row["sent_again"] == 1
    assert row["details"]["job: still queued"] == 1
    assert row["facts"] == {"seen_s": {"median": 0.5, "max": 0.5}}


def test_round_after_which_the_service_does_not_come_back_is_written_down_and_the_next_has_a_new_one():
    dropped = []

    class Sites:
        def get(self, place):
            return SimpleNamespace(start_s=1.0)

        def drop(self, error):
            dropped.append(str(error))

    def run(site):
        raise TimeoutError("not in 120 s: the service as it was")

    line = chaos.run_round(Fault(1, run), Sites())
    assert [entry["outcome"] for entry in line["entries"]] == ["lost"]
    assert dropped == ["not in 120 s: the service as it was"]


def test_client_sends_again_what_serve_s_proxy_drops_but_not_what_the_service_refuses(monkeypatch):
    monkeypatch.setattr(chaos_client, "_FIRST_PAUSE_S", 0.0)
    answers = [
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(200, json={"data": [{"b64_json": "cGl4ZWxz"}]}),
        httpx.Response(429, json={"error": {"code": "queue_full"}}),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(502),
        httpx.Response(500, text="Internal Server Error"),
    ]
    ask = chaos_client.Ask(seed=1, num_steps=2)
    client = chaos_client.LedgerClient("http://nowhere")
    client._client = httpx.Client(base_url="http://nowhere", transport=httpx.MockTransport(lambda _: answers.pop(0)))
    client._expected[ask] = "cGl4ZWxz"
    outcomes = [(e.outcome, e.num_tries, e.detail) for e in (client.picture(ask) for _ in range(3))]
    assert outcomes == [("equal", 2, ""), ("refused", 1, "queue_full"), ("lost", 3, "HTTP 500")]


def test_table_counts_failed_requests_as_lost():
    entries = [entry("picture", "equal", 1), entry("picture", "lost", 0), entry("job", "failed", 0)]
    table = as_markdown(chaos.summarize([{"fault": "rank_killed", "entries": entries, "facts": {"seen_s": 0.25}}]))
    head, rule, line = table.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line == "| rank killed | 1 | 3 | 1 | 0 | 2 | 0 | 0 | 0 | seen 0.25 (at most 0.25) s |"
