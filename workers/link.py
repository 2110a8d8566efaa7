"""Trees with tensors over a wire: control and CPU tensors on the socket, device tensors by the process group (NCCL).

Where the process group cannot carry device tensors (gloo, when ranks share one GPU) they travel on the socket by way
of host memory.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from workers.encoding import dim_order, empty_like_layout, tensor_bytes, tensor_layout
from workers.tensor_memory import SentTensors
from workers.wire import Buffer, Header, Wire


@dataclass(frozen=True, slots=True)
class TensorRoute:
    """How device tensors reach the peer.

    Attributes:
        device: where the receiving side puts device tensors.
        group: process group for point-to-point sends of device tensors; None: by the socket.
        peer_rank: the peer's world rank in `group`.
    """

    device: torch.device
    group: dist.ProcessGroup | None
    peer_rank: int


@dataclass(slots=True)
class Link:
    """One end of the connection between the leader and a follower.

    `sent` is None on a follower: results differ in each call, remembering them would only hold memory.
    """

    wire: Wire
    route: TensorRoute
    sent: SentTensors | None = None
    received: dict[int, torch.Tensor] = field(default_factory=dict)
    sent_bytes: int = 0

    def send(self, header: Header, tensors: list[torch.Tensor], *, timeout_s: float | None) -> None:
        """Sends `header` with `tensors`; one that the peer still has unchanged costs a slot number only."""
        entries: list[list[Any]] = []
        on_wire: list[torch.Tensor] = []
        on_device: list[torch.Tensor] = []
        for tensor in tensors:
            slot = None if self.sent is None else self.sent.find(tensor)
            if slot is not None:
                entries.append([slot])
                continue
            new_slot = None if self.sent is None else self.sent.remember(tensor)
            entries.append([new_slot, *tensor_layout(tensor)])
            (on_device if self._by_group(tensor.device.type) else on_wire).append(tensor)
        buffers = [tensor_bytes(tensor) for tensor in on_wire]
        self.wire.send({**header, "tensors": entries}, buffers, timeout_s=timeout_s)
        for tensor in on_device:
            dist.send(_dense(tensor), dst=self.route.peer_rank, group=self.route.group)
        self.sent_bytes += sum(tensor.nbytes for tensor in (*on_wire, *on_device))

    def receive(self, *, timeout_s: float | None) -> tuple[Header, list[torch.Tensor]]:
        """Receives what `send` sent. `timeout_s=None` waits for ever."""
        arrivals: list[_Arrival] = []

        def make_buffers(header: Header, lengths: list[int]) -> list[Buffer]:
            arrivals.extend(self._arrival(entry) for entry in header["tensors"])
            buffers = [arrival.buffer for arrival in arrivals if arrival.buffer is not None]
            if [buffer.nbytes for buffer in buffers] != lengths:
                raise ValueError(f"{self.wire.peer} sent buffers of {lengths} bytes that do not match their tensors")
            return list(buffers)

        header = self.wire.receive(make_buffers, timeout_s=timeout_s)
        return header, [self._finish(arrival) for arrival in arrivals]

    def forget(self) -> None:
        """Drops all remembered tensors of both directions; both ends must do it at the same message."""
        if self.sent is not None:
            self.sent.clear()
        self.received.clear()

    def _by_group(self, device_type: str) -> bool:
        return device_type != "cpu" and self.route.group is not None

    def _arrival(self, entry: list[Any]) -> "_Arrival":
        slot, *layout = entry
        if not layout:
            return _Arrival(slot=slot, layout=None, dense=None, tensor=self.received[slot], buffer=None)
        by_group = self._by_group(layout[2])
        device = self.route.device if by_group else torch.device("cpu")
        dense, tensor = empty_like_layout(layout, device=device)
        buffer = None if by_group else memoryview(dense.reshape(-1).view(torch.uint8).numpy().data)
        return _Arrival(slot=slot, layout=layout, dense=dense, tensor=tensor, buffer=buffer)

    def _finish(self, arrival: "_Arrival") -> torch.Tensor:
        if arrival.layout is None:
            return arrival.tensor
        if arrival.buffer is None and arrival.dense is not None:
            dist.recv(arrival.dense, src=self.route.peer_rank, group=self.route.group)
        tensor = arrival.tensor
        if arrival.layout[2] != "cpu" and tensor.device != self.route.device:
            tensor = tensor.to(self.route.device)
        if arrival.slot is not None:
            self.received[arrival.slot] = tensor
        return tensor


@dataclass(slots=True)
class _Arrival:
    slot: int | None
    layout: list[Any] | None
    dense: torch.Tensor | None
    tensor: torch.Tensor
    buffer: memoryview | None


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    order = dim_order(tensor)
    return (tensor if order is None else tensor.permute(order)).contiguous()
