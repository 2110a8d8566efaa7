"""Loads this rank's components in the plan's order and puts the pipeline together on the leader."""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import ComponentKind, ComponentPlan, Plan, Residency
from workers.direct_load import LoadedComponent, load_component
from workers.errors import LoadError
from workers.sequence import apply_sequence
from workers.stream_engine import HostMemory
from workers.stream_offload import OffloadGroup, apply_offload
from workers.streaming import apply_streaming, streaming_place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComponentLoaded:
    """One component is in place on one rank."""

    world_rank: int
    name: str
    bytes_read: int
    seconds: float


@dataclass(slots=True)
class RankComponents:
    """The modules that this rank holds, by component name.

    `offloaded` names those that take turns on the device, `turns` is who is there.
    """

    turns: OffloadGroup = field(default_factory=OffloadGroup)
    offloaded: set[str] = field(default_factory=set)
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    bytes_read: int = 0


def load_components(
    plan: Plan,
    into: RankComponents,
    *,
    world_rank: int,
    device: torch.device,
    mesh: DeviceMesh | None,
    sequence: diffusers.ParallelConfig | None = None,
) -> Iterator[ComponentLoaded]:
    """Loads what the plan gives to this rank, in load order, and yields each component as it is in place.

    `mesh` is the rank's FSDP mesh, `sequence` the group of ranks that it shares its denoisers' tokens with.

    Raises:
        LoadError: names the component and what is wrong with it.
    """
    for component in sorted(plan.components, key=lambda component: component.load_order):
        if world_rank not in component.ranks:
            continue
        result = _load_one(plan, component, into, device=device, mesh=mesh)
        if sequence is not None and component.kind is ComponentKind.DENOISER:
            apply_sequence(result.module, config=sequence)
        into.modules[component.name] = result.module
        into.bytes_read += result.bytes_read
        loaded = ComponentLoaded(world_rank, component.name, result.bytes_read, result.seconds)
        logger.info(
            "loaded %s (%s, %s): %.1f MiB read in %.2f s",
            loaded.name, component.class_name, component.residency, loaded.bytes_read / 2**20, loaded.seconds,
        )  # fmt: skip
        yield loaded


def build_pipeline(plan: Plan, components: RankComponents) -> Any:
    """The diffusers pipeline of the leader, around the components that are already loaded.

    Schedulers, tokenizers and processors come from the checkpoint by diffusers itself.
    """
    diffusers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, plan.pipeline_class)
    pipeline = pipeline_class.from_pretrained(
        plan.checkpoint, dtype=getattr(torch, plan.dtype), local_files_only=True, **components.modules
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_one(
    plan: Plan, component: ComponentPlan, into: RankComponents, *, device: torch.device, mesh: DeviceMesh | None
) -> LoadedComponent:
    if component.residency is Residency.SHARDED and mesh is None:
        raise LoadError(f"{component.name} is to be sharded, but the plan's fsdp_degree is 1")
    load = functools.partial(
        load_component,
        Path(plan.checkpoint) / component.name,
        library=component.library,
        class_name=component.class_name,
        dtype=getattr(torch, plan.dtype),
        variant=plan.variant,
    )
    match component.residency:
        case Residency.RESIDENT:
            return load(device=device)
        case Residency.SHARDED:
            return load(device=device, mesh=mesh)
        case Residency.OFFLOAD:
            loaded = load(device=torch.device("cpu"))
            apply_offload(loaded.module, device=device, group=into.turns)
            into.offloaded.add(component.name)
            return loaded
        case Residency.LAYERWISE:
            return _load_streamed(load, component, device=device)


def _load_streamed(
    load: Callable[..., LoadedComponent], component: ComponentPlan, *, device: torch.device
) -> LoadedComponent:
    """Reads streamed blocks into their flat host buffers and everything else to the device."""
    num_resident = component.num_resident_blocks or 0
    host = HostMemory(pin=device.type == "cuda")
    place = streaming_place(device=device, num_resident_blocks=num_resident, host=host)
    loaded = load(device=device, place=place)
    apply_streaming(
        loaded.module,
        device=device,
        num_resident_blocks=num_resident,
        prefetch_depth=component.prefetch_depth or 1,
        host=host,
    )
    return loaded
