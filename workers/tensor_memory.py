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

    def place(self, tensor: torch.Tensor) -> tuple[int | None, bool]:
        """Where the peer has, or is about to have, this tensor.

        Returns:
            Its slot, and whether the peer has it there unchanged; if not, it must be sent, and is remembered. No slot
            if it is not worth one.
        """
        num_bytes = tensor.nbytes
        if not MIN_REMEMBERED_BYTES <= num_bytes <= MAX_REMEMBERED_BYTES or tensor.is_inference():
            return None, False
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        entry = self._entries.get(key)
        if entry is not None and entry.version == tensor._version:
            self._entries.move_to_end(key)
            return entry.slot, True
        if entry is not None:
            self._drop(key)
        while not self._free or self._num_bytes + num_bytes > MAX_REMEMBERED_BYTES:
            self._drop(next(iter(self._entries)))
        slot = self._free.pop()
        self._entries[key] = _Sent(slot, tensor, tensor._version)
        self._num_bytes += num_bytes
        return slot, False

    def clear(self) -> None:
        """Forgets everything; the peer is told to do the same."""
        while self._entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key)
        self._free.append(entry.slot)
        self._num_bytes -= entry.tensor.nbytes
