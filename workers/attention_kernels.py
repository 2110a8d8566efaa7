"""Chooses a denoiser's attention kernel: the first of the plan's that gives the same result as torch's own choice."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from planner.plan import AttentionBackend
from workers.errors import LoadError
from workers.shard_conditions import model_class_name

logger = logging.getLogger(__name__)

_NAMES = {
    AttentionBackend.NATIVE: AttentionBackendName.NATIVE,
    AttentionBackend.CUDNN: AttentionBackendName._NATIVE_CUDNN,
    AttentionBackend.FLASH: AttentionBackendName._NATIVE_FLASH,
    AttentionBackend.EFFICIENT: AttentionBackendName._NATIVE_EFFICIENT,
    AttentionBackend.MATH: AttentionBackendName._NATIVE_MATH,
}
_PROBE_TOKENS = 192
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute, for normal values: outputs are means of 192 of them, below 1; a last-bit difference in bfloat16 is 2^-8."""


def choose_attention_kernel(
    module: nn.Module, wanted: Sequence[AttentionBackend], *, device: torch.device, dtype: torch.dtype
) -> AttentionBackend:
    """Sets the first of `wanted` that works for this model on this device; the outcome is logged.

    Each is tried once on a small input against torch's own choice; with a mask too where the model takes masks, unless
    it is the user's choice. The order is the plan's, and not by a measurement here, so that all ranks choose alike.

    Raises:
        LoadError: the only one wanted (the user's choice) does not work.
    """
    head_dim = _head_dim(module)
    with_mask = len(wanted) > 1 and _takes_masks(module)
    for backend in wanted:
        if backend is AttentionBackend.NATIVE:
            logger.info("%s: attention by torch's own choice of kernel", model_class_name(module))
            return backend
        problem = find_problem(backend, device=device, dtype=dtype, head_dim=head_dim, with_mask=with_mask)
        count = 0 if problem else _set_backend(module, _NAMES[backend])
        if count:
            logger.info("%s: attention of %d modules by %s", model_class_name(module), count, backend)
            return backend
        problem = problem or "its attention takes no other kernel"
        if len(wanted) == 1:
            raise LoadError(
                f"attention_backend {backend} does not work for {model_class_name(module)} (head dim {head_dim}, "
                f"{dtype}) on {device}: {problem}; use auto or native"
            )
        logger.info("%s: attention is not computed by %s: %s", model_class_name(module), backend, problem)
    return AttentionBackend.NATIVE


def find_problem(
    backend: AttentionBackend, *, device: torch.device, dtype: torch.dtype, head_dim: int, with_mask: bool
) -> str | None:
    """Why this kernel cannot stand for torch's own choice; None if it can."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, _PROBE_TOKENS, 2, head_dim)
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    mask = (torch.arange(_PROBE_TOKENS) < _PROBE_TOKENS // 2)[None, None, None].to(device)
    try:
        for used_mask in (None, mask) if with_mask else (None,):
            result = _attend(query, key, value, used_mask, _NAMES[backend])
            expected = _attend(query, key, value, used_mask, AttentionBackendName.NATIVE)
            difference = float((result.float() - expected.float()).abs().max())
            if not difference <= _TOLERANCE.get(dtype, 1e-5):
                return f"its result {'with a mask ' if used_mask is not None else ''}differs by {difference:.2g}"
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, name: AttentionBackendName) -> Tensor:
    with torch.no_grad():
        return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=name)  # type: ignore[no-any-return, unused-ignore]


def _set_backend(module: nn.Module, name: AttentionBackendName) -> int:
    """Sets the kernel of every attention module of this model alone; returns how many there are.

    `ModelMixin.set_attention_backend` sets the process's default too, which autoencoders with wide heads then follow.
    """
    found: list[Any] = [getattr(part, "processor", None) for part in module.modules()]
    processors = [processor for processor in found if hasattr(processor, "_attention_backend")]
    for processor in processors:
        processor._attention_backend = name
    return len(processors)


def _takes_masks(module: nn.Module) -> bool:
    return any("mask" in name for name in inspect.signature(module.forward).parameters)


def _head_dim(module: nn.Module) -> int:
    config = getattr(module, "config", None)
    found = getattr(config, "attention_head_dim", None)
    return found if isinstance(found, int) and found > 0 else 64
