"""Tensors that travel by the process group: any strides, equal values, and the sender's own memory left alone.

gloo and NCCL refuse tensors that are not contiguous ("Tensors must be contiguous"); pipelines hand over views of all
kinds. Here gloo carries what NCCL carries on GPUs, by the same lines.
"""

import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.dist.weights.ranks import run_ranks
from workers.encoding import flatten
from workers.link import Link, TensorRoute
from workers.tensor_memory import SentTensors
from workers.wire import Wire

CPU = torch.device("cpu")


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    return {
        "contiguous": base,
        "every second column": base[..., ::2],
        "permuted": base.permute(0, 2, 3, 1),
        "channels last": base.to(memory_format=torch.channels_last),
        "middle of a batch": base[:, 1:2],
        "expanded": torch.tensor(7.0).expand(5),
        "one element, expanded": torch.tensor(7).expand(1),
        "half precision, transposed": base[0, 0].half().t(),
        "a dtype that NCCL does not know": base.to(torch.int16),
        "complex, as rotary tables": torch.complex(base, base),
        "no elements": base[:0],
    }


def exchange(mesh: Any, port_file: str) -> list[str]:
    """Rank 0 sends every view to rank 1, which checks it and sends it doubled back; returns what was wrong."""
    group, rank = dist.group.WORLD, dist.get_rank()
    route = TensorRoute(CPU, group, 1 - rank, group_devices=frozenset({"cpu"}))
    if rank == 0:
        door = socket.create_server(("127.0.0.1", 0))
        Path(port_file).write_text(str(door.getsockname()[1]))
        dist.barrier()
        link = Link(Wire(door.accept()[0], peer="rank 1"), route, SentTensors())
        return send_all(link)
    dist.barrier()
    connection = socket.create_connection(("127.0.0.1", int(Path(port_file).read_text())))
    return answer_all(Link(Wire(connection, peer="rank 0"), route))


def send_all(link: Link) -> list[str]:
    wrong = []
    for name in views():
        view = views()[name]  # the views of one call share their memory, and this one is written to
        before = view.clone()
        link.send({"name": name}, flatten(view), timeout_s=60.0)
        doubled = link.receive(timeout_s=60.0).value
        wrong += [name] * (not torch.equal(view, before) or not torch.equal(doubled, 2 * before))
        view = view.clone() if name == "expanded" else view
        view.copy_(doubled)  # the caller's own memory takes the answer, whatever its strides
        wrong += [f"{name}, in place"] * (not torch.equal(view, 2 * before))
    return wrong


def answer_all(link: Link) -> list[str]:
    wrong = []
    for name, view in views().items():
        received = link.receive(timeout_s=60.0).value
        is_dense = name not in ("every second column", "middle of a batch", "expanded", "one element, expanded")
        wrong += [name] * (not torch.equal(received, view) or (is_dense and received.stride() != view.stride()))
        link.send({"name": name}, flatten(received.mul_(2)), timeout_s=60.0)
    return wrong


def test_views_of_any_strides_cross_by_the_process_group(tmp_path: Path) -> None:
    assert run_ranks(exchange, tmp_path, str(tmp_path / "port")) == [[], []]
