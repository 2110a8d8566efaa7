"""What can go wrong under `benchmarks.chaos`: real signals to real processes, and clients that misbehave."""

import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks import chaos_processes as processes
from benchmarks.chaos_client import Ask, Entry, LedgerClient, in_thread
from benchmarks.chaos_nodes import lose_node, site_of_nodes
from benchmarks.chaos_processes import is_gone, pids_of, signal_one_of, wait_until
from benchmarks.chaos_redeploy import redeploy_under_load
from benchmarks.chaos_rounds import Facts, Fault, Result, at_step, collect, quantile, under_load
from benchmarks.chaos_site import LONG, MIDDLE, SHORT, Site
from benchmarks.chaos_store import fill_disk, make_disk_read_only, site_of_stores, stop_database
from planner.actor import get_planner_actor

# Latents of some hundred PiB: more than a process has addresses, so that no machine tries.
HUGE = {"prompt": "a red circle", "seed": 1, "size": "999936x999936", "num_frames": 400_001}
STAGES = ("sent", "queued", "encode", "denoise", "decode")
OVERLOAD = 5.0
OVERLOAD_S = 180.0
OVERLOAD_REQUESTS = 2000


def _signalled(start: str, number: signal.Signals, *, seen_by: str | None = None) -> Callable[[Site], Result]:
    """A round with a signal to one process. `seen_s`: until the processes `seen_by`, which depend on it, have ended."""

    def harm() -> Facts:
        witnesses = pids_of(seen_by) if seen_by else []
        signal_one_of(start, number)
        if not witnesses:
            return {}
        return {"seen_s": wait_until(lambda: all(map(is_gone, witnesses)), f"the end of {seen_by}", timeout_s=60)}

    return lambda site: under_load(site, harm)


def _kill_planner(site: Site) -> Result:
    """Serving does without it: it is there for the next deploy, and gone when nobody holds it."""

    def harm() -> Facts:
        held = get_planner_actor()
        signal_one_of(processes.PLANNER, signal.SIGKILL)
        del held
        return {}

    return under_load(site, harm)


def _run_out_of_memory(site: Site) -> Result:
    """A request beyond all memory among others; those are right, and the same processes make them."""
    before = pids_of(processes.RANK)
    begin = time.monotonic()
    around = [in_thread(site.client.picture, SHORT[index % 2]) for index in range(4)]
    code = site.client.video_error(HUGE)
    huge = Entry("huge", "refused" if code == "out_of_memory" else "lost", 0, code)
    entries = [*collect(around), *(site.client.picture(SHORT[index % 2]) for index in range(5))]
    same = pids_of(processes.RANK) == before
    return Result([huge, *entries], {"same_processes": float(same), "round_s": time.monotonic() - begin})


def _clients_leave(site: Site) -> Result:
    """One client leaves at a random stage; the next ones get their pictures. `free_s`: until the first of them does."""
    stage = random.choice(STAGES)
    left = site.client.leave_at(stage, LONG)
    start = time.monotonic()
    first = site.client.picture(SHORT[1])
    free_s = time.monotonic() - start
    return Result([left, first, site.client.picture(SHORT[0]), site.client.picture(SHORT[1])], {"free_s": free_s})


def _overload(site: Site) -> Result:
    """Five times as many requests a second as one after the other are made, for three minutes, each sent once.

    Facts: `alone_s`, a request's time on the idle service; `refused_p50_s`, `refused_p99_s`; `accepted_p99_s`;
    `queueing_s`, the time that the last of a full queue has to wait for on the idle service.
    """
    alone_s = _mean_seconds(site.client, MIDDLE)
    pause_s = alone_s / OVERLOAD
    count = min(OVERLOAD_REQUESTS, math.ceil(OVERLOAD_S / pause_s))
    begin, futures = time.monotonic(), []
    for index in range(count):
        time.sleep(max(begin + index * pause_s - time.monotonic(), 0.0))
        futures.append(in_thread(site.client.picture_once, MIDDLE))
    sent_s = time.monotonic() - begin
    entries = collect(futures)
    refused = sorted(entry.seconds for entry in entries if entry.outcome == "refused")
    accepted = sorted(entry.seconds for entry in entries if entry.outcome == "equal")
    places = site.settings.max_queued_requests * site.settings.num_ingress_replicas
    facts = {
        "alone_s": alone_s, "sent_s": sent_s, "refused_p50_s": quantile(refused, 0.5),
        "refused_p99_s": quantile(refused, 0.99), "accepted_p99_s": quantile(accepted, 0.99),
        "queueing_s": alone_s * places, "restored_s": site.wait_until_whole(),
    }  # fmt: skip
    return Result(entries, facts)


def _poison(site: Site) -> Result:
    """A request under which a rank dies each time, among good ones: refused at the third death, the good are made."""
    ask = Ask(seed=random.randrange(10**6, 10**9), num_steps=LONG.num_steps)
    killed: set[int] = set()
    good = [in_thread(site.client.picture, SHORT[index % 2]) for index in range(10)]
    good += [in_thread(site.client.job, SHORT[index % 2]) for index in range(10)]

    def kill() -> None:
        if not killed & set(ranks := pids_of(processes.RANK)):
            signal_one_of(processes.RANK, signal.SIGKILL)
            killed.update(ranks)

    begin = time.monotonic()
    entry = site.client.watched_picture(ask, at_step(kill))
    is_refused = entry.detail == "request_kills_groups"
    poison = replace(entry, kind="poison", outcome="refused" if is_refused else "lost")
    entries = [poison, *collect(good)]
    site.wait_until_whole()
    return Result(entries, {"num_deaths": float(len(killed) // 2), "round_s": time.monotonic() - begin})


def _mean_seconds(client: LedgerClient, ask: Ask, *, num_times: int = 5) -> float:
    return sum(client.picture(ask).seconds for _ in range(num_times)) / num_times


FAULTS: dict[str, Fault] = {
    "rank_killed": Fault(30, _signalled(processes.RANK, signal.SIGKILL, seen_by=processes.COORDINATOR)),
    "rank_stopped": Fault(5, _signalled(processes.RANK, signal.SIGSTOP, seen_by=processes.COORDINATOR)),
    "coordinator_killed": Fault(5, _signalled(processes.COORDINATOR, signal.SIGKILL, seen_by=processes.RANK)),
    "ingress_killed": Fault(5, _signalled(processes.INGRESS, signal.SIGKILL)),
    "controller_killed": Fault(5, _signalled(processes.CONTROLLER, signal.SIGKILL)),
    "proxy_killed": Fault(5, _signalled(processes.PROXY, signal.SIGKILL)),
    "planner_killed": Fault(5, _kill_planner),
    "out_of_memory": Fault(30, _run_out_of_memory),
    "clients_leave": Fault(50, _clients_leave),
    "poison": Fault(5, _poison),
    "overload": Fault(1, _overload),
    "redeploy": Fault(5, redeploy_under_load),
    "node_lost": Fault(5, lose_node, place=site_of_nodes),
    "disk_full": Fault(4, fill_disk, place=site_of_stores),
    "disk_read_only": Fault(3, make_disk_read_only, place=site_of_stores),
    "database_gone": Fault(3, stop_database, place=site_of_stores),
}
