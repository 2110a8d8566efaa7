"""What the service keeps goes away and comes back: results' disk full or read-only, the database stopped.

Needs root, for a small file system of its own, and PostgreSQL's server.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray import serve

from benchmarks.chaos_client import ANSWER_TIMEOUT_S, in_thread
from benchmarks.chaos_processes import wait_until
from benchmarks.chaos_rounds import Result, collect
from benchmarks.chaos_site import HOST, MIDDLE, SHORT, Site, deploy, make_settings, site_at
from deployments.local_ray import local_ray
from deployments.local_serve import find_port
from tests.tools.private_postgres import PrivatePostgres, private_postgres

_DISK = "16m"
_FILLING = "filling"
_SEEN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a site keeps its jobs and results.

    Attributes:
        disk: the results' file system.
        database: the jobs'.
    """

    disk: Path
    database: PrivatePostgres

    def fill(self) -> None:
        """Leaves no room for a file."""
        with (self.disk / _FILLING).open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def empty(self) -> None:
        """Makes room again."""
        (self.disk / _FILLING).unlink()

    def forbid_writing(self) -> None:
        """Makes the results' disk read-only, as a system does that has seen errors on it."""
        _run("mount", "-o", "remount,ro", str(self.disk))

    def allow_writing(self) -> None:
        """Makes it writable again."""
        _run("mount", "-o", "remount,rw", str(self.disk))


@contextmanager
def site_of_stores(folder: Path) -> Iterator[Site]:
    """A service with its jobs in PostgreSQL and its results on a small disk."""
    with _small_disk(folder / "disk") as disk, private_postgres() as database, local_ray(num_cpus=8, num_gpus=0):
        settings = make_settings(folder, state={"database": database.url, "storage": str(disk)})
        port, begin = find_port(HOST, 0), time.monotonic()
        serve.start(http_options={"host": HOST, "port": port, "location": "HeadOnly"})
        deploy(settings)
        with site_at(port, settings, begin, extra=Stores(disk, database)) as site:
            yield site
        serve.shutdown()


def fill_disk(site: Site) -> Result:
    """See `_while_gone`."""
    return _while_gone(site, site.extra.fill, site.extra.empty)


def make_disk_read_only(site: Site) -> Result:
    """See `_while_gone`."""
    return _while_gone(site, site.extra.forbid_writing, site.extra.allow_writing)


def stop_database(site: Site) -> Result:
    """See `_while_gone`."""
    return _while_gone(site, site.extra.database.stop, site.extra.database.start)


def _while_gone(site: Site, take: Callable[[], None], give_back: Callable[[], None]) -> Result:
    """Three jobs before it goes, four pictures and three jobs while it is away; it comes back when `/health` knew.

    Facts: `seen_s`, until `/health` was 503; `restored_s`, from its return until all was well.
    """
    accepted = [threading.Event() for _ in range(3)]
    asks = (MIDDLE, *SHORT)
    before = [in_thread(site.client.job, ask, event) for ask, event in zip(asks, accepted, strict=True)]
    for event in accepted:
        event.wait(ANSWER_TIMEOUT_S)
    take()
    try:
        seen_s = wait_until(lambda: site.client.health()[0] == 503, "/health says it", timeout_s=_SEEN_TIMEOUT_S)
        pictures = collect([in_thread(site.client.picture, SHORT[index % 2]) for index in range(4)])
        during = [in_thread(site.client.job, ask) for ask in asks]
        collect([in_thread(site.client.picture, SHORT[0])])  # so that the jobs have been sent by now
    finally:
        give_back()
    restored_s = site.wait_until_whole()
    return Result([*pictures, *collect([*before, *during])], {"seen_s": seen_s, "restored_s": restored_s})


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        raise PermissionError("a small file system is mounted for this fault: run it as root")
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
