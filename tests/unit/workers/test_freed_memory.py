import platform
import threading

import psutil
import pytest

from workers import freed_memory
from workers.freed_memory import give_freed_memory_back

_NUM_BLOCKS = 65_536
_BLOCK_BYTES = 1000  # too large for Python's own allocator, too small for a mapping of its own


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep no free memory")
def test_what_another_thread_allocated_is_given_back_once_it_is_freed() -> None:
    blocks: list[bytearray] = []
    thread = threading.Thread(target=lambda: blocks.extend(bytearray(_BLOCK_BYTES) for _ in range(_NUM_BLOCKS)))
    thread.start()
    thread.join()
    del blocks[:-1]  # the last one keeps glibc from giving back by itself what lies before it
    before = psutil.Process().memory_info().rss
    assert give_freed_memory_back()
    assert before - psutil.Process().memory_info().rss > 0.8 * _NUM_BLOCKS * _BLOCK_BYTES


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_trim", None)
    assert not give_freed_memory_back()
