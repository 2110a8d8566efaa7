"""Which tensors the other side already has, so that prompt embeddings cross once a request and not once a step."""

from collections import OrderedDict
from dataclasses import dataclass

import torch

NUM_SLOTS = 32
MAX_REMEMBERED_BYTES = 256 << 20
MIN_REMEMBERED_BYTES = 4096
"""Smaller tensors travel each time: as few bytes as their slot number costs, and time steps would fill the slots."""

_Key = tuple[int, torch.Size, tuple[int, ...], torch.dtype, torch.device]


@dataclass(slots=True)
class _Sent:
    slot: int
    tensor: torch.Tensor  # a strong reference: without it the address could be another tensor's tomorrow
    version: int


class SentTensors:
    """The sender's side: the last `NUM_SLOTS` tensors sent to one peer, least recently used first.

    A tensor counts as unchanged if address, shape, strides, dtype, device and version counter are the same. Tensors
    made under `torch.inference_mode` have no version and are always sent.
    """

    def __init__(self, num_slots: int = NUM_SLOTS) -> None:
        self._entries: OrderedDict[_Key, _Sent] = OrderedDict()
        self._free = list(range(num_slots))
        self._num_bytes = 0

    def find(self, tensor: torch.Tensor) -> int | None:
        """The slot in which the peer has this very tensor, unchanged; None if it must be sent."""
        if not _can_remember(tensor):
            return None
        entry = self._entries.get(_key(tensor))
        if entry is None:
            return None
        if entry.version != tensor._version:
            self._drop(_key(tensor))
            return None
        self._entries.move_to_end(_key(tensor))
        return entry.slot

    def remember(self, tensor: torch.Tensor) -> int | None:
        """Takes a slot for a tensor that is about to be sent; None if it is not worth one."""
        if not _can_remember(tensor):
            return None
        while not self._free or self._num_bytes + tensor.nbytes > MAX_REMEMBERED_BYTES:
            self._drop(next(iter(self._entries)))
        slot = self._free.pop()
        self._entries[_key(tensor)] = _Sent(slot, tensor, tensor._version)
        self._num_bytes += tensor.nbytes
        return slot

    def clear(self) -> None:
        """Forgets everything; the peer is told to do the same."""
        while self._entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key)
        self._free.append(entry.slot)
        self._num_bytes -= entry.tensor.nbytes


def _can_remember(tensor: torch.Tensor) -> bool:
    return MIN_REMEMBERED_BYTES <= tensor.nbytes <= MAX_REMEMBERED_BYTES and not tensor.is_inference()


def _key(tensor: torch.Tensor) -> _Key:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
