"""How much host memory this process may still take: the machine's, and its container's."""

from pathlib import Path

from planner.memory import host_headroom_bytes
from planner.plan import Plan

UNLIMITED = 1 << 60
"""Above this a limit is none: version 1 writes 2^63 less a page for it."""


def host_budget_bytes(plan: Plan, *, taken_bytes: int = 0, root: Path = Path("/")) -> int:
    """Bytes that a rank may still take for weights on its host.

    The smaller of what the plan leaves of the node (capacity less headroom, less `taken_bytes`) and what the container
    has left now. Plans that do not know the node's memory (capacity 0) leave it to the container.
    """
    room = host_room_bytes(root=root)
    capacity = plan.memory.host_capacity_bytes
    if capacity <= 0:
        return room
    return max(0, min(room, capacity - host_headroom_bytes(capacity) - taken_bytes))


def host_room_bytes(*, root: Path = Path("/")) -> int:
    """Bytes that can still be taken before the system or the container's limit ends the process.

    Args:
        root: where `proc` and `sys` are; for tests.
    """
    rooms = [_available_on_machine(root / "proc/meminfo"), *_rooms_v2(root), *_rooms_v1(root)]
    return min((room for room in rooms if room is not None), default=UNLIMITED)


def _available_on_machine(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _rooms_v2(root: Path) -> list[int | None]:
    """What each control group from this process's own up to the root leaves (a limit may stand at any of them)."""
    base = root / "sys/fs/cgroup"
    own = next((line.split("::", 1)[1] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")), None)
    if own is None:
        return []
    # In a container the path is often the host's, and what is mounted is the container's own group: both are looked at.
    folder = base / own.strip("/")
    groups = [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]
    return [_room(group / "memory.max", group / "memory.current", group / "memory.stat") for group in groups]


def _rooms_v1(root: Path) -> list[int | None]:
    group = root / "sys/fs/cgroup/memory"
    limit, usage = group / "memory.limit_in_bytes", group / "memory.usage_in_bytes"
    return [_room(limit, usage, group / "memory.stat")]


def _room(limit_file: Path, usage_file: Path, statistics: Path) -> int | None:
    limit, usage = _number(limit_file), _number(usage_file)
    if limit is None or usage is None or limit >= UNLIMITED:
        return None
    # Cached file pages count as used and go when memory is needed.
    cached = {name: int(value) for name, _, value in (line.partition(" ") for line in _lines(statistics))}
    reclaimable = cached.get("total_inactive_file", cached.get("inactive_file", 0))
    return max(0, limit - max(0, usage - reclaimable))


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdigit() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("ascii", errors="replace").splitlines()
    except OSError:
        return []
