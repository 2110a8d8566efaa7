"""Host memory that is left, by the machine's figures and the container's, from files as kernels write them."""

from pathlib import Path

import pytest

from tests.plans import make_wan_plan
from workers.host_limits import UNLIMITED, host_budget_bytes, host_room_bytes

GIB = 2**30


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {64 * 2**20} kB\n")
    return tmp_path


def write_v2(root: Path, group: str, limit: str, used: int, cached: int = 0) -> None:
    folder = f"sys/fs/cgroup/{group}".rstrip("/")
    write(root, f"{folder}/memory.max", f"{limit}\n")
    write(root, f"{folder}/memory.current", f"{used}\n")
    write(root, f"{folder}/memory.stat", f"anon 1\ninactive_file {cached}\n")


def test_without_a_container_the_machines_memory_counts(machine: Path) -> None:
    assert host_room_bytes(root=machine) == 64 * GIB


def test_without_any_figure_there_is_no_limit(tmp_path: Path) -> None:
    assert host_room_bytes(root=tmp_path) == UNLIMITED


def test_the_containers_limit_less_what_is_used_counts_and_cached_pages_do_not(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/\n")
    write_v2(machine, "", str(16 * GIB), used=10 * GIB, cached=4 * GIB)
    assert host_room_bytes(root=machine) == 10 * GIB


def test_a_limit_of_an_outer_group_counts(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/pod/rank\n")
    write_v2(machine, "pod/rank", "max", used=1)
    write_v2(machine, "pod", str(8 * GIB), used=2 * GIB)
    assert host_room_bytes(root=machine) == 6 * GIB


def test_a_host_path_that_is_not_mounted_falls_back_to_the_mounted_group(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/kubepods/pod7/abc\n")
    write_v2(machine, "", str(4 * GIB), used=GIB)
    assert host_room_bytes(root=machine) == 3 * GIB


def test_version_1_limits_count_and_its_no_limit_is_none(machine: Path) -> None:
    write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))
    write(machine, "sys/fs/cgroup/memory/memory.usage_in_bytes", str(GIB))
    assert host_room_bytes(root=machine) == 64 * GIB
    write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(8 * GIB))
    write(machine, "sys/fs/cgroup/memory/memory.stat", f"cache 5\ntotal_inactive_file {GIB}\n")
    assert host_room_bytes(root=machine) == 8 * GIB


def test_budget_is_the_smaller_of_plan_and_container(machine: Path) -> None:
    plan = make_wan_plan(machine)
    assert host_budget_bytes(plan, root=machine) == 64 * GIB
    memory = plan.memory.model_copy(update={"host_capacity_bytes": 10 * GIB})
    plan = plan.model_copy(update={"memory": memory})
    assert host_budget_bytes(plan, taken_bytes=GIB, root=machine) == 8 * GIB


def test_this_machine_has_some_room() -> None:
    assert 0 < host_room_bytes() < UNLIMITED
