"""A redeploy with another plan while requests come in: groups and ingress replicas change, no request may fail."""

import itertools
import random
import time

from benchmarks.chaos_client import Entry, in_thread
from benchmarks.chaos_processes import COORDINATOR, INGRESS, is_gone, pids_of
from benchmarks.chaos_rounds import Result, collect
from benchmarks.chaos_site import SHORT, Site, deploy, status_of

_NUM_REQUESTS = 100
_MOST_AT_ONCE = 8
_TIMEOUT_S = 300.0


def redeploy_under_load(site: Site) -> Result:
    """Requests, every third a job, until all old replicas are gone, a hundred at least; each sent once.

    Facts: `rollover_s`, until the last old replica was gone.
    """
    before = [*pids_of(COORDINATOR), *pids_of(INGRESS)]
    plan = site.settings.plan.model_copy(update={"num_inference_steps": random.randrange(10, 1000)})
    begin = time.monotonic()
    deploy(site.settings.model_copy(update={"plan": plan}))
    entries: list[Entry] = []
    rollover_s = None
    for turn in itertools.count():
        if rollover_s is None and status_of().status == "RUNNING" and all(map(is_gone, before)):
            rollover_s = time.monotonic() - begin
        if (rollover_s is not None and len(entries) >= _NUM_REQUESTS) or time.monotonic() - begin > _TIMEOUT_S:
            break
        entries += _some_requests(site, turn)
    if rollover_s is None:
        raise TimeoutError(f"not in {_TIMEOUT_S:g} s: all replicas changed")
    site.wait_until_whole()
    return Result(entries, {"rollover_s": rollover_s})


def _some_requests(site: Site, turn: int) -> list[Entry]:
    asks = [SHORT[(turn + index) % 2] for index in range(_MOST_AT_ONCE)]
    acts = [site.client.job if index % 3 == 0 else site.client.picture_once for index in range(_MOST_AT_ONCE)]
    return collect([in_thread(act, ask) for act, ask in zip(acts, asks, strict=True)])
