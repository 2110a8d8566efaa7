"""Sequence parallelism inside a lane: its ranks share the tokens of each denoiser call.

diffusers declares for some models where a call's tensors are split and joined again (`_cp_plan`), and its attention
then exchanges heads for tokens (Ulysses). This module hangs the library's own hooks into a rank's denoisers, over the
process group of the rank's lane. The library's one call for it, `enable_parallelism`, wants an accelerator, splits only
lengths that the degree divides, refuses results that are dataclasses, and mistreats some attention masks; what is below
mends that.

Order: after loading and after `fully_shard` or streaming, before the seam is attached. The hooks replace `forward` on
the instance, inside of everything that wraps a module's call, so they also run inside FSDP's gathering and streaming's
copies; put on first they would work too, but loading and sharding look best at modules that nothing has touched.
"""

import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.context_parallel import (
    ContextParallelGatherHook,
    ContextParallelSplitHook,
    EquipartitionSharder,
)
from diffusers.models._modeling_parallel import gather_size_by_comm
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_map_only

from planner.sequence import UNSPLIT_CLASSES
from workers.errors import InvalidCallError, LoadError
from workers.shard_conditions import model_class_name

logger = logging.getLogger(__name__)


def sequence_config(mesh: DeviceMesh) -> ParallelConfig:
    """diffusers' description of this rank's sequence group.

    Every rank of the process group must call it, since the library forms one more subgroup; once a group, its denoisers
    share it.

    Args:
        mesh: `process_group.sequence_mesh`, with the dimensions `ring` (of size 1) and `ulysses`.
    """
    context = ContextParallelConfig(ulysses_degree=mesh["ulysses"].size(), mesh=mesh)
    config = ParallelConfig(context_parallel_config=context)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config.setup(rank, world_size, torch.device(mesh.device_type), mesh=mesh)
    return config


def apply_sequence(module: nn.Module, *, config: ParallelConfig) -> None:
    """Splits the tokens of every call of `module` over the ranks of `config`, in place.

    All ranks of the sequence group must then run each call with equal arguments; each returns the whole result.

    Raises:
        LoadError: the model cannot be split; the message says why and what else can be done.
    """
    _mend_masks()
    name = model_class_name(module)
    plan = getattr(module, "_cp_plan", None)
    if not plan:
        raise LoadError(f"{name} has no sequence parallel plan in diffusers: use sequence_degree 1, or more CFG lanes")
    if name in UNSPLIT_CLASSES:
        raise LoadError(f"{name} cannot be split over ranks: {UNSPLIT_CLASSES[name]}; use sequence_degree 1")
    context = config.context_parallel_config
    num_attentions, backend = _share_attention(module, config)
    for target, part in plan.items():
        for found in _find_targets(module, target):
            _hang(found, target, part, config)
    module.register_forward_pre_hook(functools.partial(_begin_call, context))
    module.register_forward_hook(_finish_result)
    logger.info(
        "%s: tokens split over %d ranks (Ulysses, attention backend %s, %d attentions)",
        name, context.ulysses_degree, backend, num_attentions,
    )  # fmt: skip


class _SplitHook(ContextParallelSplitHook):  # type: ignore[misc]
    """The library's hook; uneven lengths switch its slower, padding attention on for the rest of the call.

    That path asks all ranks for their lengths in each attention (several small exchanges), so it is used only where
    needed. Every rank of the group sees the same whole tensor here, so all of them decide alike.
    """

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        if not any(isinstance(key, int) for key in self.metadata):
            return output  # nothing to split in the result, which may be a dataclass
        return super().post_forward(module, output)

    def _prepare_cp_input(self, x: Tensor, cp_input: Any) -> Tensor:
        context = self.parallel_config
        if cp_input.expected_dims is None or x.dim() == cp_input.expected_dims:
            length, degree = x.shape[cp_input.split_dim], context.ulysses_degree
            if length < degree:
                raise InvalidCallError(
                    f"a sequence of {length} tokens cannot be split over {degree} ranks: ask for a larger picture, "
                    f"more frames or a longer prompt, or start the group with sequence_degree {length} or less"
                )
            if length % degree:
                context.ulysses_anything = True
        return super()._prepare_cp_input(x, cp_input)  # type: ignore[no-any-return]


class _GatherHook(ContextParallelGatherHook):  # type: ignore[misc]
    """The library's hook; uneven lengths are padded to the longest, since gloo gathers equal ones only."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        context = self.parallel_config
        if not context.ulysses_anything:
            return super().post_forward(module, output)
        parts = [output] if isinstance(output, Tensor) else list(output)
        mesh = context._flattened_mesh
        joined = [
            part if where is None else _gather_uneven(part, where.gather_dim, mesh)
            for part, where in zip(parts, self.metadata, strict=True)
        ]
        return joined[0] if isinstance(output, Tensor) else tuple(joined)


def _gather_uneven(part: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
    """All ranks' parts, one after the other on `dim`; every rank of the mesh must call it and gets the whole."""
    lengths = gather_size_by_comm(part.shape[dim], mesh.get_group())
    longest = max(lengths)
    shape = list(part.shape)
    shape[dim] = longest - shape[dim]
    gathered = EquipartitionSharder.unshard(torch.cat([part, part.new_zeros(shape)], dim), dim, mesh)
    pieces = zip(gathered.split(longest, dim), lengths, strict=True)
    return torch.cat([piece.narrow(dim, 0, length) for piece, length in pieces], dim)


def _begin_call(context: ContextParallelConfig, *_: Any) -> None:
    context.ulysses_anything = False


def _finish_result(_: nn.Module, __: Any, output: Any) -> Any:
    """Waits for gathers that still run: what leaves the module must be plain tensors, it is sent and kept."""
    return tree_map_only(functional.AsyncCollectiveTensor, lambda tensor: tensor.wait(), output)


def _share_attention(module: nn.Module, config: ParallelConfig) -> tuple[int, str]:
    """Tells each attention of its group; returns their number and the backend that computes them."""
    name = model_class_name(module)
    processors: list[Any] = [
        part.processor for part in module.modules() if getattr(part, "processor", None) is not None
    ]
    deaf = {type(processor).__name__ for processor in processors if not hasattr(processor, "_parallel_config")}
    if deaf or not processors:
        # Such an attention would see its own rank's tokens only, and the result would be quietly wrong.
        raise LoadError(
            f"{name}: its attention ({', '.join(sorted(deaf)) or 'none found'}) cannot be split over ranks: use "
            "sequence_degree 1, or more CFG lanes"
        )
    backend = getattr(processors[0], "_attention_backend", None) or _AttentionBackendRegistry.get_active_backend()[0]
    backend = AttentionBackendName(backend)
    if backend is not AttentionBackendName.NATIVE:
        raise LoadError(
            f"{name}: attention backend {backend.value} cannot be split over ranks: its masks of unequal lengths would "
            "be joined wrongly; use the native backend (unset DIFFUSERS_ATTN_BACKEND), or sequence_degree 1"
        )
    for processor in processors:
        processor._parallel_config = config
    return len(processors), backend.value


@functools.cache
def _mend_masks() -> None:
    """Makes the native backend fit masks to what the rank computes; calls that are not split pass untouched.

    The library hands on whole a mask that is written out for all heads, and fails (LTX); and where ranks have unequal
    lengths it joins their masks with padding in between, so that later ranks' tokens get their neighbours' mask.
    """
    native = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]

    @functools.wraps(native)
    def attend(**arguments: Any) -> Any:
        mask, config = arguments.get("attn_mask"), arguments.get("_parallel_config")
        if config is not None and mask is not None:
            context = config.context_parallel_config
            mask = _of_local_heads(mask, arguments["query"].shape[2], context)
            if context.ulysses_anything and mask.shape[-1] == arguments["key"].shape[1]:
                mask = mask[:, None, None, :] if mask.ndim == 2 else mask
                mask = _gather_uneven(mask, mask.ndim - 1, context._ulysses_mesh)
            arguments["attn_mask"] = mask
        return native(**arguments)

    _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE] = attend


def _of_local_heads(mask: Tensor, num_heads: int, context: ContextParallelConfig) -> Tensor:
    if mask.ndim != 4 or mask.shape[1] != num_heads or num_heads == 1:
        return mask
    first = context._ulysses_local_rank * num_heads // context.ulysses_degree
    return mask[:, first : first + num_heads // context.ulysses_degree]


def _find_targets(module: nn.Module, target: str) -> Iterator[nn.Module]:
    """Modules that a plan's entry names; `*` stands for all entries of a list, an empty name for the model.

    Entries for single numbers may lie past the end of their list (plans written out for the largest model).
    """
    pattern = re.compile(re.escape(target).replace(r"\*", r"\d+"))
    found = [part for name, part in module.named_modules() if pattern.fullmatch(name)]
    if not found and not re.search(r"\.\d+(\.|$)", target):
        raise LoadError(
            f"{model_class_name(module)}: its sequence parallel plan names {target!r}, which it lacks: use "
            "sequence_degree 1, or more CFG lanes"
        )
    yield from found


def _hang(found: nn.Module, target: str, part: Any, config: ParallelConfig) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(found)
    if isinstance(part, dict):
        registry.register_hook(_SplitHook(part, config.context_parallel_config), f"sequence-split {target}")
        return
    outputs = list(part) if isinstance(part, list | tuple) else [part]
    registry.register_hook(_GatherHook(outputs, config.context_parallel_config), f"sequence-gather {target}")
