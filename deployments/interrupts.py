"""Ctrl-C and SIGTERM, so that what was started is always stopped again."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raise_on_termination() -> None:
    """Makes SIGTERM and SIGINT raise `KeyboardInterrupt` in the main thread; Ray's own handlers would exit at once."""
    if _is_main_thread():
        for number in _SIGNALS:
            signal.signal(number, _raise)


@contextmanager
def hold_interrupts(*, drop: bool = False) -> Iterator[None]:
    """Keeps interrupts back while something is started or stopped that must not be left half done.

    Args:
        drop: forget them; otherwise one that came raises `KeyboardInterrupt` at the end.
    """
    if not _is_main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and not drop:
        raise KeyboardInterrupt


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
