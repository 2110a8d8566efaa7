"""Kills, stops and overloads the parts of a running service, with a ledger of every request.

    python -m benchmarks.chaos [--faults NAME ...] [--count N] [--folder DIR]

A round sends pictures and picture jobs, does one fault while ranks are in mid-step, waits for every answer and for the
service's health, and writes the round to the ledger (`chaos.jsonl`). A second run goes on where the ledger ends: each
fault is done `--count` times in all. Pictures are compared to the byte with what the undisturbed service made.
"""

import argparse
import base64
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

from benchmarks.chaos_faults import FAULTS, Fault, wait_until
from benchmarks.record import RESULTS, keep
from deployments.local_ray import local_ray
from deployments.local_serve import find_port, run_app
from deployments.settings import AppSettings

SHAPES = Path(__file__).parent.parent / "checkpoints" / "shapes"
SEEDS = (11, 12, 13)
NUM_STEPS = 100
MAX_QUEUED = 8
NUM_INGRESS_REPLICAS = 2
_ANSWER_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the ledger.

    Attributes:
        kind: `picture` (the client waits) or `job` (accepted, made, fetched).
        outcome: `equal`, `different`, `refused` (an error object with a reason before work was promised), `failed` (an
            error object after that), `lost` (no answer, or one that is not ours), `left` (the client went away itself).
        num_answers: files that came of it.
        detail: the error's code, or what broke.
    """

    kind: str
    outcome: str
    num_answers: int
    detail: str = ""


class Service:
    """The running app from a client's side."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=_ANSWER_TIMEOUT_S)
        self.expected: dict[int, str] = {}

    def learn(self) -> None:
        """Makes every picture undisturbed."""
        for seed in SEEDS:
            response = self.client.post("/v1/images/generations", json=body(seed)).raise_for_status()
            self.expected[seed] = response.json()["data"][0]["b64_json"]

    def is_healthy(self) -> bool:
        """Whether all ranks of a group answer now."""
        try:
            return bool(self.client.get("/health", timeout=10).json()["status"] == "ok")
        except (httpx.HTTPError, ValueError):
            return False

    def picture(self, seed: int) -> Entry:
        """Asks for a picture and waits for it."""
        try:
            response = self.client.post("/v1/images/generations", json=body(seed))
        except httpx.HTTPError as error:
            return Entry("picture", "lost", 0, type(error).__name__)
        if response.status_code == 200:
            return self._compare("picture", seed, response.json()["data"])
        code = error_code(response)
        is_typed = code is not None and response.status_code in (422, 429, 503, 504)
        return Entry("picture", "refused" if is_typed else "lost", 0, code or f"HTTP {response.status_code}")

    def submit(self, seed: int) -> str:
        """Has a job accepted; its id."""
        response = self.client.post("/v1/images/generations", json={**body(seed), "background_job": True})
        return str(response.raise_for_status().json()["id"])

    def job(self, job_id: str, seed: int) -> Entry:
        """Waits for an accepted job."""
        end = time.monotonic() + _ANSWER_TIMEOUT_S
        state: dict[str, Any] = {}
        while time.monotonic() < end and state.get("status") not in ("completed", "failed"):
            time.sleep(0.1)
            try:
                response = self.client.get(f"/v1/images/jobs/{job_id}", timeout=10)
                state = response.json() if response.status_code == 200 else state
            except (httpx.HTTPError, ValueError):
                continue
        if state.get("status") == "completed":
            return self._compare("job", seed, state["data"])
        if state.get("status") == "failed":
            return Entry("job", "failed", 0, state["error"]["code"])
        return Entry("job", "lost", 0, f"still {state.get('status')}")

    def leave_in_mid_step(self, seed: int) -> Entry:
        """Asks for a picture, and disconnects while it is made."""
        with self.client.stream("POST", "/v1/images/generations", json={**body(seed), "stream": True}) as response:
            for line in response.iter_lines():
                if '"denoise"' in line:
                    break
        return Entry("picture", "left", 0)

    def watched_picture(self, seed: int, begun: threading.Event) -> Entry:
        """As `picture`, by server-sent events; sets `begun` when the ranks are in mid-step."""
        try:
            with self.client.stream("POST", "/v1/images/generations", json={**body(seed), "stream": True}) as response:
                if response.status_code != 200:
                    response.read()
                    return Entry("picture", "refused", 0, error_code(response) or f"HTTP {response.status_code}")
                return self._follow(seed, response.iter_lines(), begun)
        except httpx.HTTPError as error:
            return Entry("picture", "lost", 0, type(error).__name__)
        finally:
            begun.set()

    def _follow(self, seed: int, lines: Iterable[str], begun: threading.Event) -> Entry:
        for line in lines:
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("stage") == "denoise" and event["step"] >= 2:
                begun.set()
            if "b64_json" in event:
                return self._compare("picture", seed, [event])
            if "error" in event:
                return Entry("picture", "failed", 0, event["error"]["code"])
        return Entry("picture", "lost", 0, "the events ended")

    def _compare(self, kind: str, seed: int, data: list[dict[str, Any]]) -> Entry:
        contents = [item.get("b64_json") or self._fetch(item["url"]) for item in data]
        is_equal = contents == [self.expected[seed]]
        return Entry(kind, "equal" if is_equal else "different", len(contents))

    def _fetch(self, url: str) -> str:
        return base64.b64encode(self.client.get(url).raise_for_status().content).decode()


def body(seed: int) -> dict[str, Any]:
    """A picture that takes long enough to be hit."""
    return {"prompt": "a red circle", "seed": seed, "num_inference_steps": NUM_STEPS}


def error_code(response: httpx.Response) -> str | None:
    """The code of our error object; None if the answer is none of ours."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


def run_round(service: Service, fault: Fault) -> list[Entry]:
    """Requests, the fault, all answers, health again."""
    with ThreadPoolExecutor(max_workers=256) as pool:
        begun = threading.Event()
        watched = pool.submit(service.watched_picture, SEEDS[0], begun)
        jobs = [(service.submit(seed), seed) for seed in SEEDS[:2]]
        pictures = [pool.submit(service.picture, seed) for seed in SEEDS[1:]]
        waiting = [pool.submit(service.job, job_id, seed) for job_id, seed in jobs]
        begun.wait(_ANSWER_TIMEOUT_S)
        extra = fault(service, pool)
        entries = [future.result() for future in (watched, *pictures, *waiting, *extra)]
    wait_until(service.is_healthy, "health", timeout_s=120)
    return entries


def start(stack: ExitStack, folder: Path) -> Service:
    """A Ray and an app of two ranks that end with the stack."""
    stack.enter_context(local_ray(num_cpus=8, num_gpus=0))
    settings = AppSettings.model_validate(
        {
            "checkpoint": str(SHAPES),
            "plan": {"device": "cpu", "num_ranks": 2, "cfg_degree": 2, "cpus_per_rank": 1},
            "num_ingress_replicas": NUM_INGRESS_REPLICAS,
            "max_queued_requests": MAX_QUEUED,
            "step_deadline_floor_s": 10.0,
            "jobs": {"lease_s": 3.0},
            "state": {"folder": str(folder)},
        }
    )
    stack.callback(serve.shutdown)
    logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"  # type: ignore[attr-defined]
    port = find_port("127.0.0.1", 0)
    run_app(settings, host="127.0.0.1", port=port, logs=logs)
    service = Service(f"http://127.0.0.1:{port}")
    service.learn()
    wait_until(service.is_healthy, "health", timeout_s=60)
    return service


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The rounds done so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarize(rounds: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a fault."""
    rows: dict[str, Counter[str]] = {}
    details: dict[str, Counter[str]] = {}
    for done in rounds:
        row, why = rows.setdefault(done["fault"], Counter()), details.setdefault(done["fault"], Counter())
        row["rounds"] += 1
        row["requests"] += len(done["entries"])
        for entry in done["entries"]:
            row[entry["outcome"]] += 1
            row["lost_jobs"] += entry["kind"] == "job" and entry["outcome"] in ("lost", "failed")
            row["answered_twice"] += entry["num_answers"] > 1
            if entry["detail"]:
                why[f"{entry['kind']}: {entry['detail']}"] += 1
    columns = ("rounds", "requests", "equal", "different", "refused", "failed", "lost", "left", "lost_jobs",
               "answered_twice")  # fmt: skip
    return [
        {"fault": name, **{column: row[column] for column in columns}, "details": dict(details[name])}
        for name, row in rows.items()
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Does what is missing in the ledger, keeps and prints the rows, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--count", type=int, default=2, help="rounds a fault, those in the ledger included")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where ledger and figures are kept")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    ledger = options.folder / "chaos.jsonl"
    done = Counter(line["fault"] for line in read_ledger(ledger))
    missing = [name for name in options.faults for _ in range(options.count - done[name])]
    with ExitStack() as stack:
        if missing:
            service = start(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        for name in missing:
            began = time.monotonic()
            entries = run_round(service, FAULTS[name])
            line = {"fault": name, "seconds": round(time.monotonic() - began, 1), "entries": [*map(asdict, entries)]}
            with ledger.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}: {dict(Counter(entry.outcome for entry in entries))} in {line['seconds']} s", flush=True)
    rows = summarize(read_ledger(ledger))
    keep("chaos", rows, folder=options.folder)
    return rows


if __name__ == "__main__":
    main()
