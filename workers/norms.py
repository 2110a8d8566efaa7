"""Norms that compute in float32 cast their parameters once, not on every call.

diffusers' `FP32LayerNorm` (and two RMS norms) cast weight and bias each time: two kernel launches a norm. Here the cast
is kept beside the module, outside of its state. Under `torch.compile` the original code is traced: there the cast is
fused into the norm and costs nothing, and no graph breaks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3NemotronRMSNorm
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21ZeroCenterRMSNorm
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

_CACHE = "_float32_casts"  # in the instance's dict: neither parameter nor buffer, hence not in its state


class _Cast:
    """The float32 copy of one parameter, and what it was made from.

    The storage is known by a weak reference: that keeps no memory alive, and no new storage gets its identity.
    """

    __slots__ = ("key", "storage", "value")

    def __init__(self, parameter: Tensor, device: torch.device) -> None:
        self.storage = StorageWeakRef(parameter.untyped_storage())
        self.key = _key(parameter, device)
        with torch.inference_mode(False), torch.no_grad():
            self.value = parameter.detach().to(device=device, dtype=torch.float32)

    def holds(self, parameter: Tensor, device: torch.device) -> bool:
        same_storage: bool = self.storage.cdata == parameter.untyped_storage()._cdata
        return same_storage and self.key == _key(parameter, device)


def cache_norms(model: nn.Module) -> int:
    """Lets all norms of the model that cast on every call keep their casts; in place, state and results unchanged.

    Device bytes: 4 a norm parameter, taken at the first call.

    Returns:
        The number of norms.
    """
    count = 0
    for module in model.modules():
        replacement = _CACHED.get(type(module))
        if replacement is not None:
            module.__class__ = replacement
            count += 1
    return count


def cached_float32(module: nn.Module, name: str, device: torch.device) -> Tensor:
    """The module's parameter in float32, from the cache while storage, version, device and dtype are the same.

    Call it with gradients disabled only.
    """
    parameter = module.get_parameter(name)
    if parameter.dtype is torch.float32 or parameter.is_inference():
        return parameter.float()  # nothing to cast; or no version that would tell of changes
    casts: dict[str, _Cast] = module.__dict__.setdefault(_CACHE, {})
    cast = casts.get(name)
    if cast is None or not cast.holds(parameter, device):
        cast = casts[name] = _Cast(parameter, device)
    return cast.value


def _key(parameter: Tensor, device: torch.device) -> tuple[Any, ...]:
    return (
        parameter.data_ptr(),
        parameter.shape,
        parameter.stride(),
        parameter._version,
        parameter.device,
        parameter.dtype,
        device,
    )


def _uncached() -> bool:
    return torch.compiler.is_compiling() or torch.is_grad_enabled()


class CachedFP32LayerNorm(FP32LayerNorm):  # type: ignore[misc, unused-ignore]
    """`FP32LayerNorm` with cached casts."""

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (..., features), any floating dtype; returns the same."""
        if _uncached():
            return super().forward(inputs)  # type: ignore[no-any-return, unused-ignore]
        weight = None if self.weight is None else cached_float32(self, "weight", inputs.device)
        bias = None if self.bias is None else cached_float32(self, "bias", inputs.device)
        return F.layer_norm(inputs.float(), self.normalized_shape, weight, bias, self.eps).to(inputs.dtype)


class CachedCosmos3RMSNorm(Cosmos3NemotronRMSNorm):  # type: ignore[misc, unused-ignore]
    """`Cosmos3NemotronRMSNorm` with a cached cast."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: (..., features), any floating dtype; returns the same."""
        if _uncached():
            return super().forward(hidden_states)  # type: ignore[no-any-return, unused-ignore]
        values = hidden_states.float()
        values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.eps)
        return (cached_float32(self, "weight", values.device) * values).to(hidden_states.dtype)


class CachedQwenImage21RMSNorm(QwenImage21ZeroCenterRMSNorm):  # type: ignore[misc, unused-ignore]
    """`QwenImage21ZeroCenterRMSNorm` with a cached cast."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: (..., features), any floating dtype; returns the same."""
        if _uncached():
            return super().forward(hidden_states)  # type: ignore[no-any-return, unused-ignore]
        values = hidden_states.float()
        scale = torch.rsqrt(torch.mean(values**2, dim=-1, keepdim=True) + self.eps)
        weight = cached_float32(self, "weight", values.device)
        return (values * scale * (weight + 1)).to(hidden_states.dtype)


_CACHED: dict[type, type] = {
    FP32LayerNorm: CachedFP32LayerNorm,
    Cosmos3NemotronRMSNorm: CachedCosmos3RMSNorm,
    QwenImage21ZeroCenterRMSNorm: CachedQwenImage21RMSNorm,
}
