"""Loads this rank's components in the plan's order and puts the pipeline together on the leader."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import ComponentKind, Plan, Residency
from workers.calls import ComponentLoaded
from workers.residency import PlacedComponent, Placer
from workers.sequence import apply_sequence
from workers.shared_host import NodeRanks
from workers.stream_offload import OffloadGroup
from workers.streaming import StreamedModule

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RankComponents:
    """The modules that this rank holds, by component name.

    `offloaded` names those that take turns on the device, `turns` is who is there; `streamed` are the handles of those
    whose blocks are streamed, in the order in which a request needs them.
    """

    turns: OffloadGroup = field(default_factory=OffloadGroup)
    offloaded: set[str] = field(default_factory=set)
    streamed: dict[str, StreamedModule] = field(default_factory=dict)
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    bytes_read: int = 0

    def start_request(self) -> None:
        """Starts copying the first blocks of everything that is streamed, while the prompt is encoded.

        Copies nothing where the last request's last step has already fetched them.
        """
        for handle in self.streamed.values():
            handle.forget()  # the last call may have ended anywhere
            handle.prefetch()


def load_components(
    plan: Plan,
    into: RankComponents,
    *,
    world_rank: int,
    device: torch.device,
    mesh: DeviceMesh | None,
    sequence: diffusers.ParallelConfig | None = None,
    node: NodeRanks | None = None,
) -> Iterator[ComponentLoaded]:
    """Loads what the plan gives to this rank, in load order, and yields each component as it is in place.

    `mesh` is the rank's FSDP mesh, `sequence` the group of ranks that it shares its denoisers' tokens with. By `node`,
    ranks of one node that stream the same component hold it in host memory once; all of them must load.

    Raises:
        LoadError: names the component and what is wrong with it.
        HostMemoryError: host memory is refused, and the plan has no choice that needs less.
    """
    placer = Placer(plan, device, mesh, into.turns, node)
    streamed: list[tuple[bool, str, StreamedModule]] = []
    for component in sorted(plan.components, key=lambda component: component.load_order):
        if world_rank not in component.ranks:
            continue
        placed = placer.place(component)
        if sequence is not None and component.kind is ComponentKind.DENOISER:
            apply_sequence(placed.loaded.module, config=sequence)
        if placed.streamed is not None:
            streamed.append((component.kind is ComponentKind.DENOISER, component.name, placed.streamed))
        yield _note(component.name, placed, into, world_rank=world_rank)
    into.streamed = {name: handle for _, name, handle in sorted(streamed, key=lambda entry: entry[:2])}


def build_pipeline(
    plan: Plan, components: RankComponents, *, stand_ins: Mapping[str, torch.nn.Module] | None = None
) -> Any:
    """The diffusers pipeline of the leader, around the components that are already loaded.

    `stand_ins` take the place of components that lie on another rank. Schedulers, tokenizers and processors come from
    the checkpoint by diffusers itself.
    """
    diffusers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, plan.pipeline_class)
    pipeline = pipeline_class.from_pretrained(
        plan.checkpoint, dtype=getattr(torch, plan.dtype), local_files_only=True,
        **components.modules, **(stand_ins or {}),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _note(name: str, placed: PlacedComponent, into: RankComponents, *, world_rank: int) -> ComponentLoaded:
    result = placed.loaded
    into.modules[name] = result.module
    into.bytes_read += result.bytes_read
    if placed.residency is Residency.OFFLOAD:
        into.offloaded.add(name)
    logger.info(
        "loaded %s (%s, %s): %.1f MiB read in %.2f s",
        name, type(result.module).__name__, placed.residency, result.bytes_read / 2**20, result.seconds,
    )  # fmt: skip
    return ComponentLoaded(
        world_rank, name, result.bytes_read, result.seconds, placed.residency, placed.fallback_reason
    )
