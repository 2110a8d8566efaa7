"""Trees with tensors over a wire: control and CPU tensors on the socket, device tensors by the process group (NCCL).

Where the process group cannot carry device tensors (gloo, when ranks share one GPU) they travel on the socket by way
of host memory.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from workers.encoding import Flat, Tree, decode_tree, dim_order, empty_like_layout, memory_of, tensor_bytes
from workers.errors import GroupDiedError
from workers.structure_memory import ReceivedStructures, SentStructures
from workers.tensor_memory import SentTensors
from workers.wire import Buffer, Header, Wire

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class TensorRoute:
    """How device tensors reach the peer.

    Attributes:
        device: where the receiving side puts device tensors.
        group: process group for point-to-point sends of device tensors; None: by the socket.
        peer_rank: the peer's world rank in `group`.
        group_devices: types of device whose tensors `group` carries.
    """

    device: torch.device
    group: dist.ProcessGroup | None
    peer_rank: int
    group_devices: frozenset[str] = frozenset({"cuda"})


@dataclass(frozen=True, slots=True)
class Received:
    """A message: its header, the value that came with it, and the tensors in the value."""

    header: Header
    value: Any
    tensors: list[torch.Tensor]


@dataclass(slots=True)
class Link:
    """One end of the connection between the leader and a follower.

    A structure that the peer has had is named by a number, and so is a tensor that it has unchanged. `sent` is None on
    a follower: results differ in each call, remembering them would only hold memory.
    """

    wire: Wire
    route: TensorRoute
    sent: SentTensors | None = None
    received: dict[int, torch.Tensor] = field(default_factory=dict)
    sent_bytes: int = 0
    _sent_structures: SentStructures = field(default_factory=SentStructures)
    _received_structures: ReceivedStructures = field(default_factory=ReceivedStructures)

    def send(self, header: Header, value: Flat | None = None, *, timeout_s: float | None) -> None:
        """Sends `header` with a value; a tensor that the peer still has unchanged costs a slot number only."""
        if value is None:
            self.wire.send(header, timeout_s=timeout_s)
            return
        try:
            self._send_value(header, value, timeout_s)
        except Exception as error:  # what the memories note as sent must have been sent
            raise self._end(error, "sent") from error

    def receive(self, *, timeout_s: float | None) -> Received:
        """Receives what `send` sent. `timeout_s=None` waits for ever."""
        arrivals: list[_Arrival] = []
        tree: Tree = None
        floats: list[float] = []

        def make_buffers(header: Header, _: list[int]) -> list[Buffer]:
            nonlocal tree, floats
            if "value" not in header:
                return []
            entry, floats, slots, changed = header["value"]
            tree, layouts = self._received_structures.look_up(entry)
            arrivals.extend(_Arrival(slot) for slot, _ in zip(slots, layouts, strict=True))
            for index in changed:
                arrivals[index] = self._arrival(slots[index], layouts[index])
            return [arrival.buffer for arrival in arrivals if arrival.buffer is not None]

        header = self.wire.receive(make_buffers, timeout_s=timeout_s)
        try:
            tensors = [self._finish(arrival) for arrival in arrivals]
            return Received(header, decode_tree(tree, tensors, floats), tensors)
        except Exception as error:
            raise self._end(error, "received") from error

    def forget(self) -> None:
        """Drops all remembered tensors of both directions; both ends must do it at the same message."""
        if self.sent is not None:
            self.sent.clear()
        self.received.clear()

    def _by_group(self, device_type: str) -> bool:
        return self.route.group is not None and device_type in self.route.group_devices

    def _send_value(self, header: Header, value: Flat, timeout_s: float | None) -> None:
        slots: list[int | None] = []
        changed: list[int] = []
        for index, tensor in enumerate(value.tensors):
            slot, is_known = (None, False) if self.sent is None else self.sent.place(tensor)
            slots.append(slot)
            if not is_known:
                changed.append(index)
        tensors = [value.tensors[index] for index in changed]
        on_wire = [tensor for tensor in tensors if not self._by_group(tensor.device.type)]
        message = [self._sent_structures.entry(value.structure), value.floats, slots, changed]
        self.wire.send({**header, "value": message}, [tensor_bytes(tensor) for tensor in on_wire], timeout_s=timeout_s)
        for tensor in tensors:
            if self._by_group(tensor.device.type):
                dist.send(_bytes_of(_dense(tensor)), dst=self.route.peer_rank, group=self.route.group)
        self.sent_bytes += sum(tensor.nbytes for tensor in tensors)

    def _arrival(self, slot: int | None, layout: list[Any]) -> "_Arrival":
        by_group = self._by_group(layout[2])
        device = self.route.device if by_group else _CPU
        dense, tensor = empty_like_layout(layout, device=device)
        buffer = None if by_group else memory_of(dense)
        return _Arrival(slot, layout, tensor, dense, buffer)

    def _finish(self, arrival: "_Arrival") -> torch.Tensor:
        """In the order of the message: a tensor that comes twice in it is named by its slot the second time."""
        if arrival.layout is None or arrival.tensor is None or arrival.dense is None:
            return self.received[arrival.slot]  # type: ignore[index]
        tensor = arrival.tensor
        if arrival.buffer is None:
            dist.recv(_bytes_of(arrival.dense), src=self.route.peer_rank, group=self.route.group)
        if arrival.layout[2] != "cpu" and tensor.device != self.route.device:
            tensor = tensor.to(self.route.device)
        if arrival.slot is not None:
            self.received[arrival.slot] = tensor
        return tensor

    def _end(self, error: Exception, what: str) -> GroupDiedError:
        """After a tensor that did not cross the two ends no longer agree: the group cannot go on."""
        self.wire.close()
        if isinstance(error, GroupDiedError):
            return error
        return GroupDiedError(f"a tensor could not be {what} ({self.wire.peer}): {error!r}")


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A tensor on its way. `layout` is None for one that is here already, `buffer` for one that comes by the group."""

    slot: int | None
    layout: list[Any] | None = None
    tensor: torch.Tensor | None = None
    dense: torch.Tensor | None = None
    buffer: memoryview | None = None


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    order = dim_order(tensor)
    return (tensor if order is None else tensor.permute(order)).contiguous()


def _bytes_of(dense: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor, (bytes,) uint8: NCCL knows few dtypes (no int16, no complex)."""
    flat = dense.view(-1)
    # One element that was expanded has stride 0 and still counts as contiguous; it cannot be seen as bytes.
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)
