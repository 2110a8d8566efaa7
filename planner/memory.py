"""Bytes on each rank and node at every moment of a group's life, for a given placement of its components."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.checkpoint import Checkpoint, Component, PlacedSizes
from planner.costs import (
    Workload,
    decode_workspace_bytes,
    denoiser_activation_bytes,
    encode_workspace_bytes,
    rows_per_call,
)
from planner.degrees import Degrees
from planner.plan import ComponentKind, Decoding, MemoryMoment, Residency, ShardUnit

GIB = 2**30
CPU_PROCESS_BYTES = int(0.75 * GIB)
"""Resident memory of a rank process with torch and diffusers imported (measured: 0.5 to 0.7 GiB, CPU wheels)."""
CUDA_PROCESS_BYTES = 3 * GIB
"""The same with CUDA's libraries loaded and a context."""
COORDINATOR_BYTES = int(0.25 * GIB)
GATHERED_UNITS = 2
"""Units (blocks or their parts) of a sharded component that are whole on a rank at once: one computes, one comes."""
STAGING_BYTES = int(0.5 * GIB)
"""Pinned ring through which a rank's weights pass while they load."""
SHARED_ON_A_NODE = frozenset({Residency.LAYERWISE, Residency.OFFLOAD})
"""Residencies whose host copy the ranks of a node share: it is only ever read."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one component lives.

    Attributes:
        ranks: world ranks that hold it, whole or in shares.
        num_resident_blocks: blocks that stay on the device when it is layerwise.
        prefetch_depth: blocks copied ahead; the ring has one buffer more.
        shard_by: what is gathered at once when it is sharded.
    """

    component: Component
    residency: Residency
    ranks: tuple[int, ...]
    num_resident_blocks: int = 0
    prefetch_depth: int = 1
    shard_by: ShardUnit = ShardUnit.BLOCKS


@dataclass(frozen=True, slots=True)
class Moments:
    """A timeline, with the peaks over it."""

    timeline: tuple[MemoryMoment, ...]
    gpu_peak_bytes: tuple[int, ...]
    host_peak_bytes: int


def gpu_headroom_bytes(capacity_bytes: int) -> int:
    """GPU memory that plans leave free, at least 1.5 GiB, at most a quarter.

    Measured on an H100 limited to 24 GiB: CUDA's context, libraries and compiled kernels 0.8 GiB, pieces between
    tensors 0.2; on whole H100s tensors that plans do not count (cuBLAS's workspaces and the like) up to 0.2. NCCL's
    buffers come on top.
    """
    return min(max(3 * GIB // 2, capacity_bytes * 4 // 100), capacity_bytes // 4)


def host_headroom_bytes(capacity_bytes: int) -> int:
    """Host memory that plans leave free: the system, Ray's own processes."""
    return capacity_bytes // 10


WorkspaceOf = Callable[[Component], int]
"""`workspace_bytes` of a component, where everything else is fixed."""


def trace_memory(
    placements: Sequence[Placement], *, degrees: Degrees, dtype: str, device: str, ranks_on_node: int,
    workspace_of: WorkspaceOf,
) -> Moments:  # fmt: skip
    """Traces memory through loading (in the order given), encoding, denoising and decoding.

    Args:
        placements: in load order.
        ranks_on_node: ranks that a node holds; the first node also holds the coordinator.
    """
    loads = _load_moments(placements, degrees=degrees, dtype=dtype)
    stages = [(f"load {p.component.name}", gpu, host) for p, (gpu, host) in zip(placements, loads, strict=True)]
    for stage, extra in _extra_bytes(placements, degrees=degrees, dtype=dtype, workspace_of=workspace_of).items():
        device_bytes, host_bytes = loads[-1]
        stages.append((stage, [have + more for have, more in zip(device_bytes, extra, strict=True)], host_bytes))
    moments = [_moment(stage, gpu, host, device=device, ranks_on_node=ranks_on_node) for stage, gpu, host in stages]
    gpu_peak = tuple(max(m.gpu_bytes[rank] for m in moments) for rank in range(degrees.num_ranks))
    return Moments(tuple(moments), gpu_peak, max(m.host_bytes for m in moments))


@dataclass(frozen=True, slots=True)
class _HostBytes:
    """Host bytes of weights: those of each rank alone, and those that each node of some ranks holds once."""

    of_ranks: list[int]
    shared: list[tuple[int, tuple[int, ...]]]

    def on_node(self, ranks: range) -> int:
        once = sum(num_bytes for num_bytes, holders in self.shared if any(rank in ranks for rank in holders))
        return sum(self.of_ranks[rank] for rank in ranks) + once


def _moment(stage: str, device_bytes: list[int], host: _HostBytes, *, device: str, ranks_on_node: int) -> MemoryMoment:
    staging = STAGING_BYTES if stage.startswith("load") and device == "cuda" else 0
    process = CPU_PROCESS_BYTES if device == "cpu" else CUDA_PROCESS_BYTES
    num_ranks = len(device_bytes)
    fullest = 0
    for ranks in _ranks_of_nodes(num_ranks, ranks_on_node):
        needed = host.on_node(ranks) + len(ranks) * (process + staging) + (COORDINATOR_BYTES if 0 in ranks else 0)
        if device == "cpu":
            needed += sum(device_bytes[rank] for rank in ranks)
        fullest = max(fullest, needed)
    gpu_bytes = (0,) * num_ranks if device == "cpu" else tuple(device_bytes)
    return MemoryMoment(stage=stage, gpu_bytes=gpu_bytes, host_bytes=fullest)


def _ranks_of_nodes(num_ranks: int, ranks_on_node: int) -> list[range]:
    """Ranks are laid on nodes in order; the coordinator is on the first."""
    return [range(first, min(first + ranks_on_node, num_ranks)) for first in range(0, num_ranks, ranks_on_node)]


def pinned_bytes(placements: Sequence[Placement], *, degrees: Degrees, dtype: str, ranks_on_node: int) -> int:
    """Pinned host bytes of weights on the fullest node of a group on GPUs; what its ranks share counts once."""
    _, host = _load_moments(placements, degrees=degrees, dtype=dtype)[-1]
    return max(host.on_node(ranks) for ranks in _ranks_of_nodes(degrees.num_ranks, ranks_on_node))


def _load_moments(
    placements: Sequence[Placement], *, degrees: Degrees, dtype: str
) -> list[tuple[list[int], _HostBytes]]:
    """Device bytes a rank, and host bytes, after each component is loaded."""
    device, host = [0] * degrees.num_ranks, _HostBytes([0] * degrees.num_ranks, [])
    moments: list[tuple[list[int], _HostBytes]] = []
    for placement in placements:
        idle, pinned = idle_bytes(placement, dtype=dtype, fsdp=degrees.fsdp)
        is_shared = placement.residency in SHARED_ON_A_NODE
        device, host = list(device), _HostBytes(list(host.of_ranks), list(host.shared))
        if is_shared:
            host.shared.append((pinned, placement.ranks))
        for rank in placement.ranks:
            device[rank] += idle
            if not is_shared:
                host.of_ranks[rank] += pinned
        moments.append((device, host))
    return moments


def device_peaks(
    placements: Sequence[Placement], *, degrees: Degrees, dtype: str, workspace_of: WorkspaceOf
) -> list[int]:
    """Highest device bytes of each rank: the peaks of `trace_memory` on GPUs, without its timeline.

    A search asks for it hundreds of times. Loading only adds, so the peak is what is loaded and the largest extra.
    """
    loaded = [0] * degrees.num_ranks
    for placement in placements:
        idle, _ = idle_bytes(placement, dtype=dtype, fsdp=degrees.fsdp)
        for rank in placement.ranks:
            loaded[rank] += idle
    extras = _extra_bytes(placements, degrees=degrees, dtype=dtype, workspace_of=workspace_of)
    return [have + max(more) for have, *more in zip(loaded, *extras.values(), strict=True)]


def _extra_bytes(
    placements: Sequence[Placement], *, degrees: Degrees, dtype: str, workspace_of: WorkspaceOf
) -> dict[str, list[int]]:
    """Device bytes a rank that each stage needs beside what is loaded."""
    # Components of one stage run one after the other: the largest of their extra bytes counts, on each rank.
    extras = {stage: [0] * degrees.num_ranks for stage in ("encode", "denoise", "decode")}
    for placement in placements:
        extra = extras.get(stage_of(placement.component))
        if extra is None:
            continue
        needed = active_extra_bytes(placement, dtype=dtype, fsdp=degrees.fsdp) + workspace_of(placement.component)
        for rank in placement.ranks:
            extra[rank] = max(extra[rank], needed)
    return extras


def stage_of(component: Component) -> str:
    """The stage in which a component works; `always` for those that feed every step (ControlNets, adapters)."""
    if component.kind in {ComponentKind.TEXT_ENCODER, ComponentKind.IMAGE_ENCODER}:
        return "encode"
    if component.kind is ComponentKind.DENOISER:
        return "denoise"
    return "decode" if component.kind is ComponentKind.VAE else "always"


def idle_bytes(placement: Placement, *, dtype: str, fsdp: int) -> tuple[int, int]:
    """`(device, host)` bytes that a component takes on each of its ranks while it does nothing."""
    sizes = placement.component.placed(dtype)
    match placement.residency:
        case Residency.RESIDENT:
            return sizes.whole, 0
        case Residency.SHARDED:
            return -(-sizes.whole // fsdp), 0
        case Residency.OFFLOAD:
            return 0, sizes.whole
        case Residency.LAYERWISE:
            kept = resident_block_bytes(sizes.blocks, placement.num_resident_blocks)
            num_streamed = max(0, len(sizes.blocks) - placement.num_resident_blocks)
            ring = min(placement.prefetch_depth + 1, num_streamed) * sizes.largest_block
            return sizes.rest + kept + ring, sum(sizes.blocks) - kept


def resident_block_bytes(sizes: Sequence[int], num_resident: int) -> int:
    """Bytes of the resident blocks when they are spread evenly over the model."""
    count = len(sizes)
    k = min(num_resident, count)
    return sum(sizes[(2 * i + 1) * count // (2 * k)] for i in range(k)) if k else 0


def active_extra_bytes(placement: Placement, *, dtype: str, fsdp: int) -> int:
    """Device bytes of weights that a component takes only while it works."""
    sizes = placement.component.placed(dtype)
    if placement.residency is Residency.OFFLOAD:
        return sizes.whole
    if placement.residency is Residency.SHARDED and fsdp > 1:
        return _gathered_bytes(sizes, placement.shard_by)
    return 0


def _gathered_bytes(sizes: PlacedSizes, shard_by: ShardUnit) -> int:
    """What lies outside the blocks is whole during the call, unless it is cut into parts too."""
    if shard_by is ShardUnit.BLOCKS:
        return GATHERED_UNITS * sizes.largest_block + sizes.rest
    pair = GATHERED_UNITS * sizes.largest_part
    if sizes.largest_rest_part == sizes.rest:
        return pair + sizes.rest
    return max(pair, sizes.largest_rest_part + sizes.largest_part)


def workspace_bytes(
    component: Component,
    checkpoint: Checkpoint,
    workload: Workload,
    *,
    degrees: Degrees,
    dtype: str,
    decoding: Decoding,
) -> int:
    """Device bytes besides weights that a component takes while it works, on each of its ranks."""
    if component.kind is ComponentKind.DENOISER:
        rows = rows_per_call(checkpoint, workload, cfg_degree=degrees.cfg)
        return denoiser_activation_bytes(
            component, checkpoint, workload, dtype=dtype, rows=rows, sequence_degree=degrees.sequence
        )
    if component.kind is ComponentKind.VAE:
        return decode_workspace_bytes(component, workload, dtype=dtype, decoding=decoding)
    if component.kind in {ComponentKind.TEXT_ENCODER, ComponentKind.IMAGE_ENCODER}:
        return encode_workspace_bytes(component, dtype=dtype, batch_size=workload.batch_size)
    return 0
