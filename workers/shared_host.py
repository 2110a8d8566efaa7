"""Host memory that the ranks of one node share: allocated once, filled once, gone with the last process that maps it.

The ranks of a node that stream the same component would each hold the same bytes. Instead the first of them, the
filler, makes anonymous files in memory (`memfd_create`) and tells the others through the group's store where they are;
the others map them by `/proc/PID/fd/N`. The files have no name: nothing is left over in `/dev/shm` whenever and however
the processes end, and a container's small `/dev/shm` does not limit them.
"""

import contextlib
import datetime
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import Store  # type: ignore[attr-defined]

from workers.errors import GroupStartError, WorkerError
from workers.host_map import HostMap

logger = logging.getLogger(__name__)

_REFUSED = "refused:"
MEMORY_NAME = "heliograph-weights"


class SharingRefusedError(WorkerError):
    """The filler could not take the host memory; the message is the filler's."""


class NodeRanks:
    """The ranks of the group that run on this rank's node.

    Every rank of the group must make one; returns when all have said where they are.

    Args:
        store: of the group's process group; kept under a prefix of its own.
        timeout_s: for each wait for another rank.

    Raises:
        GroupStartError: a rank did not say where it is in time.
    """

    def __init__(self, store: Store, *, world_rank: int, num_ranks: int, timeout_s: float) -> None:
        self.store = store
        self.world_rank = world_rank
        self.timeout = datetime.timedelta(seconds=timeout_s)
        store.set(f"node_of/{world_rank}", _node_identity())
        own = _node_identity()
        nodes = [_wait_for(store, f"node_of/{rank}", self.timeout) for rank in range(num_ranks)]
        self.ranks = tuple(rank for rank, node in enumerate(nodes) if node == own)

    def share(self, name: str, *, holders: Sequence[int]) -> "SharedHost | None":
        """What the holders of `name` on this node share; None if this rank is the only one."""
        here = tuple(rank for rank in holders if rank in self.ranks)
        if len(here) < 2 or self.world_rank not in here or not hasattr(os, "memfd_create"):
            return None
        return SharedHost(
            self.store,
            name,
            is_filler=self.world_rank == here[0],
            filler_rank=here[0],
            num_sharers=len(here),
            timeout=self.timeout,
        )


class SharedHost:
    """One component's shared buffers, taken by all its holders on a node in the same order with the same sizes."""

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        is_filler: bool,
        filler_rank: int,
        num_sharers: int,
        timeout: datetime.timedelta,
    ) -> None:
        self.is_filler = is_filler
        self.filler_rank = filler_rank
        self._store = store
        self._name = name
        self._num_sharers = num_sharers
        self._timeout = timeout
        self._count = 0
        self._files: list[int] = []
        self._is_private = False

    @property
    def is_filled_by_peer(self) -> bool:
        """Whether another rank reads the weights into the buffers."""
        return not self.is_filler and not self._is_private

    def map(self, num_bytes: int) -> HostMap | None:
        """The next buffer; None where this rank has to take memory of its own, which is logged.

        Raises:
            SharingRefusedError: the filler could not take it.
            GroupStartError: the filler did not say where it is in time.
        """
        key = f"{self._name}/{self._count}"
        self._count += 1
        if self.is_filler:
            return self._make(key, num_bytes)
        return None if self._is_private else self._find(key, num_bytes)

    def refuse(self, reason: str) -> None:
        """Filler: tells the others that the next buffer cannot be had, so that they choose what it chooses."""
        if self.is_filler:
            self._store.set(f"{self._name}/{self._count}", f"{_REFUSED}{reason}")

    def withdraw(self, reason: str) -> None:
        """A rank that does without the component's buffers says so once: nobody waits for it."""
        if self.is_filler:
            self.refuse(reason)
        else:
            self._count_mapped()

    def finish(self) -> None:
        """Every holder calls it after loading; returns when all is filled, for the filler when all have mapped it."""
        if self.is_filler:
            self._store.set(f"{self._name}/filled", "yes")
            if self._count:
                _wait_for(self._store, f"{self._name}/all_mapped", self._timeout)
            for file in self._files:
                os.close(file)
            self._files.clear()
            return
        self._count_mapped()
        _wait_for(self._store, f"{self._name}/filled", self._timeout)

    def _count_mapped(self) -> None:
        if self._store.add(f"{self._name}/mapped", 1) == self._num_sharers - 1:
            self._store.set(f"{self._name}/all_mapped", "yes")

    def _make(self, key: str, num_bytes: int) -> HostMap:
        file = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC)
        os.ftruncate(file, num_bytes)
        self._files.append(file)
        memory = HostMap(file, num_bytes, flags=mmap.MAP_SHARED)
        self._store.set(key, f"{os.getpid()}:{file}:{num_bytes}")
        return memory

    def _find(self, key: str, num_bytes: int) -> HostMap | None:
        place = _wait_for(self._store, key, self._timeout)
        if place.startswith(_REFUSED):
            raise SharingRefusedError(place.removeprefix(_REFUSED))
        pid, descriptor, size = (int(part) for part in place.split(":"))
        if size != num_bytes:
            raise GroupStartError(f"{key}: this rank needs {num_bytes} bytes, its peer took {size}: the plans differ")
        try:
            return _map_of_process(pid, descriptor, num_bytes)
        except OSError as error:
            logger.warning(
                "%s: the host memory of process %d cannot be mapped (%s); this rank holds a copy of its own",
                self._name, pid, error,
            )  # fmt: skip
            self._is_private = True
            return None


def _map_of_process(pid: int, descriptor: int, num_bytes: int) -> HostMap:
    path = Path(f"/proc/{pid}/fd/{descriptor}")
    if MEMORY_NAME not in str(path.readlink()):
        raise OSError(f"{path} is something else")
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return HostMap(file, num_bytes, flags=mmap.MAP_SHARED)
    finally:
        os.close(file)


def _wait_for(store: Store, key: str, timeout: datetime.timedelta) -> str:
    try:
        store.wait([key], timeout)
        return store.get(key).decode()
    except RuntimeError as error:
        raise GroupStartError(f"no rank said {key!r} within {timeout.total_seconds():g} s: {error}") from error


def _node_identity() -> str:
    """Equal for processes that see each other under `/proc`: one boot of one machine, one namespace, one user."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{boot} {namespace} {os.getuid()}" if boot and namespace else f"process {os.getpid()}"
