"""A dictionary that keeps what was used last: random shapes make new signatures for ever."""

from collections import OrderedDict
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class RecentlyUsed(OrderedDict[_Key, _Value]):
    """Holds up to `max_entries`; looking an entry up or setting it makes it the last to go."""

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self._max_entries = max_entries

    def __getitem__(self, key: _Key) -> _Value:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: _Key, value: _Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._max_entries:
            del self[next(iter(self))]
