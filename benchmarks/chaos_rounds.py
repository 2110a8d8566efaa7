"""What rounds of the chaos benchmark have in common: requests under way, harm, all answers, the service whole again."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos_client import ANSWER_TIMEOUT_S, MAX_TRIES, Entry, in_thread
from benchmarks.chaos_processes import SLOW_POLL_S, wait_until
from benchmarks.chaos_site import LONG, SHORT, Site, running_site

Facts = dict[str, float]
"""What was measured: seconds, counts."""
Place = Callable[[Path], AbstractContextManager[Site]]
RESTORE_TIMEOUT_S = 300.0
_MID_STEP = 2
_PATIENCE_S = MAX_TRIES * ANSWER_TIMEOUT_S + 60


@dataclass(frozen=True, slots=True)
class Result:
    """What a round showed: its requests, and what was measured (seconds, counts)."""

    entries: Sequence[Entry]
    facts: Facts


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of harm.

    Attributes:
        num_rounds: in a full run.
        run: one round.
        place: starts the service that it is done to.
    """

    num_rounds: int
    run: Callable[[Site], Result]
    place: Place = running_site


def under_load(site: Site, harm: Callable[[], Facts], *, num_requests: int = 20) -> Result:
    """Requests of which one is in mid-step, the harm, every answer, and the service whole again. A third of them are
    jobs, a third are pictures, a third pictures under keys.

    Facts: those of the harm; `answer_s`, until the request in mid-step was answered; `restored_s`, until every process
    was there and `/health` 200; both from the harm on.
    """
    begun = threading.Event()
    watched = in_thread(site.client.watched_picture, LONG, at_step(begun.set))
    if not begun.wait(ANSWER_TIMEOUT_S):
        raise TimeoutError("no step was made")
    accepted = [threading.Event() for _ in range(num_requests // 3)]
    others = [in_thread(site.client.job, SHORT[index % 2], event) for index, event in enumerate(accepted)]
    acts = (site.client.picture, site.client.keyed_picture)
    others += [in_thread(acts[index % 2], SHORT[index // 2 % 2]) for index in range(num_requests - len(accepted) - 1)]
    for event in accepted:
        event.wait(ANSWER_TIMEOUT_S)
    start = time.monotonic()
    answered: list[float] = []
    watched.add_done_callback(lambda _: answered.append(time.monotonic() - start))
    facts = harm()
    wait_until(site.is_back, "every process, and /health 200", timeout_s=RESTORE_TIMEOUT_S, poll_s=SLOW_POLL_S)
    restored_s = time.monotonic() - start
    entries = collect([watched, *others])
    site.wait_until_whole()
    return Result(entries, {**facts, "answer_s": answered[0], "restored_s": restored_s})


def collect(futures: Sequence["Future[Entry]"]) -> list[Entry]:
    """All entries. A request that is never over is lost."""
    entries = []
    for future in futures:
        try:
            entries.append(future.result(timeout=_PATIENCE_S))
        except TimeoutError:
            entries.append(Entry("picture", "lost", 0, "no end"))
    return entries


def at_step(act: Callable[[], Any]) -> Callable[[int], None]:
    """Acts at each step from the one on at which ranks surely are in mid-step."""
    return lambda step: act() if step >= _MID_STEP else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of the ordered values lies; NaN of none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else math.nan
