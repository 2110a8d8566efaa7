"""Mapped host memory is let go of exactly once, before it is unmapped."""

import ctypes
import gc
import mmap

import torch

from workers.host_map import HostMap


def make_map() -> tuple[HostMap, list[bytes]]:
    memory = HostMap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:4] = b"kept"
    seen: list[bytes] = []
    return memory, seen


def watch(memory: HostMap, seen: list[bytes]) -> None:
    view = torch.frombuffer(memory, dtype=torch.uint8)
    address = view.data_ptr()
    memory.before_unmap = lambda: seen.append(ctypes.string_at(address, 4))


def test_last_view_lets_go_while_the_bytes_are_there() -> None:
    memory, seen = make_map()
    watch(memory, seen)
    part = torch.frombuffer(memory, dtype=torch.uint8)[1:3]
    del memory
    gc.collect()
    assert seen == []
    del part
    gc.collect()
    assert seen == [b"kept"]


def test_letting_go_earlier_is_not_repeated() -> None:
    memory, seen = make_map()
    watch(memory, seen)
    memory.let_go()
    memory.let_go()
    del memory
    gc.collect()
    assert seen == [b"kept"]
