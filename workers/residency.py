"""Puts one component where the plan says; where host memory is refused, where the plan's next choice says."""

import functools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import (
    Compilation,
    ComponentKind,
    ComponentPlan,
    Decoding,
    Plan,
    Residency,
    ResidencyChoice,
    ShardUnit,
)
from workers.attention_kernels import choose_attention_kernel
from workers.compilation import compile_blocks
from workers.direct_load import LoadedComponent, load_component
from workers.errors import LoadError
from workers.host_limits import host_budget_bytes
from workers.norms import cache_norms
from workers.shared_host import NodeRanks, SharedHost
from workers.stream_engine import HostMemory, HostMemoryError
from workers.stream_offload import OffloadGroup, apply_offload, offload_place
from workers.streaming import StreamedModule, apply_streaming, streaming_place

logger = logging.getLogger(__name__)

_WITH_NORMS = (ComponentKind.DENOISER, ComponentKind.TEXT_ENCODER, ComponentKind.IMAGE_ENCODER)


@dataclass(frozen=True, slots=True)
class PlacedComponent:
    """A component in its place.

    Attributes:
        residency: where it really is.
        fallback_reason: why that is not what the plan chose first; None if it is.
        streamed: the handle of its streaming, if it is streamed.
    """

    loaded: LoadedComponent
    residency: Residency
    fallback_reason: str | None
    streamed: StreamedModule | None


@dataclass(slots=True)
class Placer:
    """Places the components of one rank, in load order.

    Attributes:
        turns: the offloaded components, which take turns on the device.
        node: the ranks of this rank's node, which hold streamed weights together; None on a group of one.
        host_bytes: host memory taken so far for streamed and offloaded weights.
    """

    plan: Plan
    device: torch.device
    mesh: DeviceMesh | None
    turns: OffloadGroup
    node: NodeRanks | None = None
    host_bytes: int = 0
    _assignment: dict[str, ResidencyChoice] = field(default_factory=dict)
    _placed: dict[str, ResidencyChoice] = field(default_factory=dict)

    def place(self, component: ComponentPlan) -> PlacedComponent:
        """Loads one component to its place.

        Raises:
            LoadError: it cannot be loaded.
            HostMemoryError: host memory is refused, and the plan has no choice that needs less of it.
        """
        choice = self._assignment.get(component.name) or _planned(component)
        if choice != _planned(component):
            self._leave_to_peers(component)
        reason: str | None = None
        while True:
            try:
                loaded, streamed = self._load(component, choice)
                break
            except HostMemoryError as error:
                reason, choice = str(error), self._next_choice(component, choice, error)
        self._placed[component.name] = choice
        if component.kind is ComponentKind.DENOISER:
            choose_attention_kernel(
                loaded.module, self.plan.attention_backends, device=self.device, dtype=getattr(torch, self.plan.dtype)
            )
        if component.kind is ComponentKind.VAE and self.plan.decoding is Decoding.TILES:
            _decode_in_tiles(component, loaded)
        return PlacedComponent(loaded, choice.residency, reason, streamed)

    def _next_choice(
        self, component: ComponentPlan, refused: ResidencyChoice, error: HostMemoryError
    ) -> ResidencyChoice:
        """The plan's next assignment that pins less of this component and agrees with what is in place already."""
        for fallback in self.plan.fallbacks:
            choice = fallback.get(component.name)
            agrees = all(fallback.get(name) == placed for name, placed in self._placed.items())
            if choice is not None and agrees and _pins_less(choice, refused):
                self._assignment = dict(fallback)
                logger.warning(
                    "%s cannot be %s: %s. The plan's next choice is taken: %s",
                    component.name, _text(refused), error, _text(choice),
                )  # fmt: skip
                return choice
        raise HostMemoryError(
            f"{component.name} cannot be {_text(refused)}, and the plan has no other choice that fits: {error}"
        ) from error

    def _load(self, component: ComponentPlan, choice: ResidencyChoice) -> tuple[LoadedComponent, StreamedModule | None]:
        is_compiled = self.plan.compile is Compilation.BLOCKS and component.kind is ComponentKind.DENOISER
        load = functools.partial(
            load_component,
            Path(self.plan.checkpoint) / component.name,
            library=component.library,
            class_name=component.class_name,
            dtype=getattr(torch, self.plan.dtype),
            variant=self.plan.variant,
            compile_blocks=compile_blocks if is_compiled else None,
        )
        streamed: StreamedModule | None = None
        match choice.residency:
            case Residency.RESIDENT:
                loaded = load(device=self.device)
                self._prepare(component, loaded)
            case Residency.SHARDED:
                if self.mesh is None:
                    raise LoadError(f"{component.name} is to be sharded, but the plan's fsdp_degree is 1")
                loaded = load(device=self.device, mesh=self.mesh, shard_by=choice.shard_by or ShardUnit.BLOCKS)
                self._prepare(component, loaded)
            case Residency.OFFLOAD:
                host = self._host_memory(component, choice)
                loaded = load(device=torch.device("cpu"), place=offload_place(host=host))
                host.finish_filling()
                self._prepare(component, loaded)
                apply_offload(loaded.module, device=self.device, group=self.turns, host=host)
                self.host_bytes += host.taken_bytes
            case Residency.LAYERWISE:
                host = self._host_memory(component, choice)
                num_resident = choice.num_resident_blocks or 0
                place = streaming_place(device=self.device, num_resident_blocks=num_resident, host=host)
                loaded = load(device=self.device, place=place)
                host.finish_filling()
                self._prepare(component, loaded)
                streamed = apply_streaming(
                    loaded.module,
                    device=self.device,
                    num_resident_blocks=num_resident,
                    prefetch_depth=component.prefetch_depth or 1,
                    host=host,
                )
                self.host_bytes += host.taken_bytes
        return loaded, streamed

    def _prepare(self, component: ComponentPlan, loaded: LoadedComponent) -> None:
        """What is done to the loaded module before its tensors get hooks: their classes change."""
        if component.kind in _WITH_NORMS and (count := cache_norms(loaded.module)):
            logger.info("%s: %d float32 norms keep their casts", component.name, count)

    def _host_memory(self, component: ComponentPlan, choice: ResidencyChoice) -> HostMemory:
        budget = host_budget_bytes(self.plan, taken_bytes=self.host_bytes)
        return HostMemory(max_bytes=budget, pin=self.device.type == "cuda", shared=self._share(component, choice))

    def _leave_to_peers(self, component: ComponentPlan) -> None:
        """Peers that still follow the plan for this component must not wait for this rank."""
        shared = self._share(component, _planned(component))
        if shared is not None and component.residency in (Residency.LAYERWISE, Residency.OFFLOAD):
            shared.withdraw(f"rank {shared.filler_rank} has fallen back to another residency")

    def _share(self, component: ComponentPlan, choice: ResidencyChoice) -> SharedHost | None:
        if self.node is None:
            return None
        return self.node.share(f"{component.name}/{_text(choice)}", holders=component.ranks)


def _decode_in_tiles(component: ComponentPlan, loaded: LoadedComponent) -> None:
    model: Any = loaded.module
    try:
        model.enable_tiling()
    except (AttributeError, NotImplementedError) as error:
        raise LoadError(
            f"{component.name}: {component.class_name} cannot decode in tiles; use decoding whole"
        ) from error


def _planned(component: ComponentPlan) -> ResidencyChoice:
    return ResidencyChoice(
        residency=component.residency,
        num_resident_blocks=component.num_resident_blocks,
        shard_by=component.shard_by,
    )


def _pins_less(choice: ResidencyChoice, refused: ResidencyChoice) -> bool:
    if choice.residency is Residency.RESIDENT:
        return True
    if choice.residency is not Residency.LAYERWISE:
        return False  # offload pins everything; sharding has to be decided by all ranks together
    if refused.residency is not Residency.LAYERWISE:
        return True
    return (choice.num_resident_blocks or 0) > (refused.num_resident_blocks or 0)


def _text(choice: ResidencyChoice) -> str:
    return (
        f"{choice.residency}:{choice.num_resident_blocks or 0}"
        if choice.residency is Residency.LAYERWISE
        else str(choice.residency)
    )
