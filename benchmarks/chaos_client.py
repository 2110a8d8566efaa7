"""A client that keeps account: what became of each request, and whether its bytes are those of an undisturbed service.

As OpenAI's clients do, it sends a request again, at most twice, after a dropped connection, after a 5xx that is none of
the service's own (Serve's proxy, when the replica behind it is gone), and after a 503 and a 504 that say that it may.
As long as nobody listens, it goes on trying to connect. Both are counted.
"""

import base64
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

MAX_TRIES = 3
ANSWER_TIMEOUT_S = 300.0
_FIRST_PAUSE_S = 0.5
_POLL_S = 1.0  # as the client library of OpenAI asks for videos
_SEND_AGAIN = ("unavailable", "storage_unavailable", "still_running")  # codes without `x-should-retry: false`
Outcome = Literal["equal", "different", "refused", "failed", "lost", "left"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the ledger.

    Attributes:
        kind: `picture` (the client waits), `keyed` (it waits under an idempotency key), `job` (accepted, made,
            fetched), `poison` and `huge` (meant to end in an error that says why, counted as `refused`).
        outcome: `equal`, `different`, `refused` (an error object with a reason before work was promised), `failed` (an
            error object after that), `lost` (no answer, or one that is not ours), `left` (the client went away itself).
        num_answers: files that came of it.
        detail: the error's code, or what broke.
        num_tries: how often it was sent.
        seconds: from the first sending to the answer.
    """

    kind: str
    outcome: Outcome
    num_answers: int
    detail: str = ""
    num_tries: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for.

    Attributes:
        seed: of the picture.
        num_steps: denoising steps; many take long enough to be hit.
    """

    seed: int
    num_steps: int

    @property
    def body(self) -> dict[str, Any]:
        """The request's JSON."""
        return {"prompt": "a red circle", "seed": self.seed, "num_inference_steps": self.num_steps}


class LedgerClient:
    """A service from a client's side.

    Args:
        url: where it listens.
        timeout_s: how long one answer is waited for.
    """

    def __init__(self, url: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.url = url
        self._timeout_s = timeout_s
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.Client(base_url=url, timeout=timeout_s, limits=unlimited)
        self._expected: dict[Ask, str] = {}

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    def learn(self, asks: Iterable[Ask]) -> None:
        """Makes pictures undisturbed."""
        for ask in asks:
            response = self._client.post("/v1/images/generations", json=ask.body).raise_for_status()
            self._expected[ask] = response.json()["data"][0]["b64_json"]

    def health(self) -> tuple[int, str]:
        """Status and word of `/health`; 0 if nobody answers."""
        try:
            response = self._client.get("/health", timeout=10)
            return response.status_code, str(response.json()["status"])
        except (httpx.HTTPError, ValueError, KeyError):
            return 0, "no answer"

    def picture(self, ask: Ask, *, max_tries: int = MAX_TRIES) -> Entry:
        """Asks for a picture and waits for it."""
        return _tried(lambda: self._picture("picture", ask, {}), max_tries=max_tries)

    def keyed_picture(self, ask: Ask) -> Entry:
        """As `picture`, under a key."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return _tried(lambda: self._picture("keyed", ask, headers), max_tries=MAX_TRIES, kind="keyed")

    def picture_once(self, ask: Ask) -> Entry:
        """As `picture`, but never sent again."""
        return self.picture(ask, max_tries=1)

    def watched_picture(self, ask: Ask, on_step: Callable[[int], None]) -> Entry:
        """As `picture`, by server-sent events; tells each denoising step."""
        return _tried(lambda: self._watched(ask, on_step), max_tries=MAX_TRIES)

    def job(self, ask: Ask, accepted: threading.Event | None = None) -> Entry:
        """Has a job accepted, waits for it, fetches its picture."""
        start, key = time.monotonic(), {"Idempotency-Key": uuid.uuid4().hex}
        job_id = ""

        def submit() -> Entry:
            nonlocal job_id
            response = self._client.post(
                "/v1/images/generations", json={**ask.body, "background_job": True}, headers=key
            )
            if response.status_code != 202:
                return _refusal("job", response)
            job_id = str(response.json()["id"])
            return Entry("job", "equal", 0)

        submitted = _tried(submit, max_tries=MAX_TRIES, kind="job")
        if accepted is not None:
            accepted.set()
        if not job_id:
            return submitted
        entry = self._wait_for(job_id, ask)
        return replace(entry, num_tries=submitted.num_tries, seconds=round(time.monotonic() - start, 3))

    def leave_at(self, stage: str, ask: Ask) -> Entry:
        """Asks for a picture and disconnects at a stage of it: `sent` (no byte has come back yet), or an event's."""
        if stage == "sent":
            try:
                self._client.post("/v1/images/generations", json=ask.body, timeout=httpx.Timeout(10, read=0.05))
            except httpx.ReadTimeout:
                return Entry("picture", "left", 0, stage)
            return Entry("picture", "lost", 0, "answered before the client could leave")
        with self._client.stream("POST", "/v1/images/generations", json={**ask.body, "stream": True}) as response:
            for event in _events(response.iter_lines()):
                if event.get("stage") == stage:
                    return Entry("picture", "left", 0, stage)
        return Entry("picture", "lost", 0, f"no event of the stage {stage}")

    def video_error(self, body: dict[str, Any]) -> str:
        """The code that a video job ends with; empty if it is made."""
        job_id = self._client.post("/v1/videos", json=body).raise_for_status().json()["id"]
        end = time.monotonic() + self._timeout_s
        while time.monotonic() < end:
            state = self._client.get(f"/v1/videos/{job_id}").raise_for_status().json()
            if state["status"] in ("completed", "failed"):
                return str((state["error"] or {}).get("code", ""))
            time.sleep(_POLL_S)
        return "no end"

    def _picture(self, kind: str, ask: Ask, headers: dict[str, str]) -> Entry:
        response = self._client.post("/v1/images/generations", json=ask.body, headers=headers)
        if response.status_code == 200:
            return self._compare(kind, ask, response.json()["data"])
        return _refusal(kind, response)

    def _watched(self, ask: Ask, on_step: Callable[[int], None]) -> Entry:
        end = time.monotonic() + self._timeout_s
        body = {**ask.body, "stream": True}
        with self._client.stream("POST", "/v1/images/generations", json=body) as response:
            if response.status_code != 200:
                response.read()
                return _refusal("picture", response)
            for event in _events(response.iter_lines()):
                if event.get("stage") == "denoise":
                    on_step(event["step"])
                if "b64_json" in event:
                    return self._compare("picture", ask, [event])
                if "error" in event:
                    return Entry("picture", "failed", 0, event["error"]["code"])
                if time.monotonic() > end:
                    return Entry("picture", "lost", 0, "events without end")
        return Entry("picture", "lost", 0, "the events broke off")

    def _wait_for(self, job_id: str, ask: Ask) -> Entry:
        end = time.monotonic() + self._timeout_s
        state: dict[str, Any] = {}
        while time.monotonic() < end and state.get("status") not in ("completed", "failed"):
            time.sleep(_POLL_S)
            try:
                response = self._client.get(f"/v1/images/jobs/{job_id}", timeout=10)
                state = response.json() if response.status_code == 200 else state
            except (httpx.HTTPError, ValueError):
                continue
        if state.get("status") == "completed":
            return self._compare("job", ask, state["data"])
        if state.get("status") == "failed":
            return Entry("job", "failed", 0, state["error"]["code"])
        return Entry("job", "lost", 0, f"still {state.get('status')}")

    def _compare(self, kind: str, ask: Ask, data: list[dict[str, Any]]) -> Entry:
        contents = [item.get("b64_json") or self._fetch(item["url"]) for item in data]
        is_equal = contents == [self._expected[ask]]
        return Entry(kind, "equal" if is_equal else "different", len(contents))

    def _fetch(self, url: str) -> str:
        return base64.b64encode(self._client.get(url).raise_for_status().content).decode()


def in_thread(act: Callable[..., Entry], *arguments: Any) -> "Future[Entry]":
    """Runs a request beside others, in a thread that does not keep the process from ending."""
    future: Future[Entry] = Future()

    def run() -> None:
        try:
            future.set_result(act(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def error_code(response: httpx.Response) -> str | None:
    """The code of our error object; None if the answer is none of ours."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


def _tried(send: Callable[[], Entry], *, max_tries: int, kind: str = "picture") -> Entry:
    start = time.monotonic()
    num_tries = num_sent = 0
    while True:
        num_tries += 1
        try:
            entry = send()
            num_sent += 1
        except httpx.ConnectError:  # it never left: does not count as sent
            entry = Entry(kind, "lost", 0, "ConnectError")
        except httpx.HTTPError as error:
            entry = Entry(kind, "lost", 0, type(error).__name__)
            num_sent += 1
        seconds = time.monotonic() - start
        is_worth_another = entry.outcome == "lost" or entry.detail in _SEND_AGAIN
        if not is_worth_another or num_sent >= max_tries or seconds > ANSWER_TIMEOUT_S:
            return replace(entry, num_tries=num_tries, seconds=round(seconds, 3))
        time.sleep(_FIRST_PAUSE_S * 2**num_sent)


def _refusal(kind: str, response: httpx.Response) -> Entry:
    code = error_code(response)
    if code is None:
        return Entry(kind, "lost", 0, f"HTTP {response.status_code}")
    return Entry(kind, "failed" if response.status_code in (500, 504) else "refused", 0, code)


def _events(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
