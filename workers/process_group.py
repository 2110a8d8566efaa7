"""How the ranks of a group find each other and form their process group."""

import datetime
import os
import socket

import psutil
import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import Plan, Residency
from workers.lanes import LaneLayout
from workers.rendezvous import Rendezvous
from workers.shared_host import NodeRanks
from workers.wire import WireListener, new_key

COLLECTIVE_TIMEOUT = datetime.timedelta(days=1)
"""Of the process group, longer than any call: what ends a call that hangs is its own deadline (`call_watch`), which
knows how long such calls take. By this one NCCL's watchdog would end a rank that only waits for a peer's compiler."""


class LeaderDoor:
    """The leader's listening ends: the store of the process group and the control connections, on one address.

    On a group of one node `host` is loopback, so that no port of the group is reachable from outside.
    """

    def __init__(self, host: str, world_size: int, *, timeout_s: float) -> None:
        listener = socket.create_server((host, 0), backlog=64)
        self.store = TCPStore(
            host,
            listener.getsockname()[1],
            world_size,
            is_master=True,
            timeout=datetime.timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        key = new_key()
        self.wires = WireListener(host, key)
        self.rendezvous = Rendezvous(host, self.store.port, self.wires.address[1], key)


def lane_layout(plan: Plan) -> LaneLayout:
    """The lanes of a plan; shards that span lanes make every lane take part in every call."""
    group = plan.group
    layout = LaneLayout(num_ranks=group.num_ranks, num_lanes=group.cfg_degree)
    spans = layout.lane_size % group.fsdp_degree != 0  # larger than a lane, or across the border of two
    return LaneLayout(num_ranks=group.num_ranks, num_lanes=group.cfg_degree, all_take_part=spans)


def join_process_group(
    rendezvous: Rendezvous, plan: Plan, *, world_rank: int, store: Store | None, timeout_s: float
) -> None:
    """Forms the group's process group. Every rank must call it; all return when all have joined.

    `timeout_s` is for the rendezvous alone. NCCL carries device tensors (gloo where ranks share a GPU, which NCCL
    refuses), gloo host tensors.
    """
    _bind_to_interface_of(rendezvous.host)
    timeout = datetime.timedelta(seconds=timeout_s)
    if store is None:
        store = TCPStore(
            rendezvous.host, rendezvous.store_port, plan.group.num_ranks, timeout=timeout, wait_for_workers=False
        )
    uses_nccl = plan.device == "cuda" and not plan.group.share_gpu
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if uses_nccl else "gloo",
        store=store,
        rank=world_rank,
        world_size=plan.group.num_ranks,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=torch.device("cuda", torch.cuda.current_device()) if uses_nccl else None,
    )


def shard_mesh(plan: Plan) -> DeviceMesh | None:
    """This rank's FSDP mesh: `fsdp_degree` consecutive ranks; None if nothing is sharded. Every rank must call it."""
    degree = plan.group.fsdp_degree
    if degree == 1:
        return None
    ranks = torch.arange(plan.group.num_ranks).reshape(-1, degree)
    mesh = DeviceMesh(plan.device, ranks, mesh_dim_names=("replicate", "shard"))
    return mesh["shard"]


def sequence_mesh(plan: Plan) -> DeviceMesh | None:
    """The mesh of the sequence groups: `sequence_degree` consecutive ranks of a lane each; None if nothing is split.

    Every rank must call it. The dimensions are those that diffusers asks for; `ring` is always 1.
    """
    degree = plan.group.sequence_degree
    if degree == 1:
        return None
    ranks = torch.arange(plan.group.num_ranks).reshape(-1, 1, degree)
    return DeviceMesh(plan.device, ranks, mesh_dim_names=("groups", "ring", "ulysses"))


def node_ranks(plan: Plan, *, world_rank: int, timeout_s: float) -> NodeRanks | None:
    """The ranks that share this rank's node; None if they have nothing in common. Every rank must call it."""
    held = {Residency.LAYERWISE, Residency.OFFLOAD}
    if not any(len(c.ranks) > 1 and c.residency in held for c in plan.components):
        return None
    store = dist.PrefixStore("node_ranks", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
    return NodeRanks(store, world_rank=world_rank, num_ranks=plan.group.num_ranks, timeout_s=timeout_s)


def _bind_to_interface_of(host: str) -> None:
    """Keeps gloo and NCCL bootstrap on the interface that has `host`, unless the environment says otherwise."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return
