"""Calls of a component that lies on another rank, from the leader's side and from that rank's.

Any entry is called by its path: `text_encoder` itself, a method (`vae.decode`), a part
(`text_encoder.text_model.final_layer_norm`). Random generators travel with their state and come back advanced, latent
distributions as their parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, IdentityDistribution
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from workers.block_checks import add_block_checks
from workers.component_call import ComponentCall, LocalComponent
from workers.deferred import wait_all
from workers.encoding import UnencodableError
from workers.errors import CallError
from workers.lanes import Lanes
from workers.request_control import RequestControl, RunningRequest

_GENERATOR, _DISTRIBUTION = "<torch.Generator>", "<distribution>"
_TAGS = (_GENERATOR, _DISTRIBUTION)
_DISTRIBUTIONS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (DiagonalGaussianDistribution, IdentityDistribution, OobleckDiagonalGaussianDistribution)
}


class RemoteComponents:
    """The leader's side: sends calls of components to the ranks that hold them.

    Args:
        lanes: the group's links.
        request: the running request; checked before each call, and known to the other rank for its own checks.
        ranks: world rank of each component.
        on_call: told the component's name before each of its calls.
    """

    def __init__(
        self,
        lanes: Lanes,
        request: RunningRequest,
        *,
        ranks: Mapping[str, int],
        on_call: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._lanes = lanes
        self.request = request
        self._ranks = ranks
        self.on_call = on_call

    def call(self, entry: str, *args: Any, **kwargs: Any) -> Any:
        """Calls an entry of a component where it lies; the result is the one of a local call, on this rank's device.

        Raises:
            CallError: the call failed there, or an argument or the result cannot be sent.
        """
        name = entry.partition(".")[0]
        self.request.check()
        self.on_call(name)
        args, kwargs = wait_all((args, kwargs))
        request_id, seconds_left = self.request.describe()
        call = ComponentCall(entry, (request_id, seconds_left, *_pack(args)), _pack(kwargs), None)
        try:
            call.encode()
        except UnencodableError as error:
            raise CallError(f"{entry} is on rank {self._ranks[name]}, but {error}") from error
        result, states = self._lanes.run_at(self._ranks[name], call)
        for generator, state in zip(_generators((args, kwargs)), states, strict=True):
            generator.set_state(state.cpu())
        return _unpack(result)


class ServedEntries(dict[str, LocalComponent]):
    """The other rank's side: its components by name, and every entry of those that the leader's pipeline calls here.

    Args:
        components: what is called as a whole (denoisers).
        served: what the leader calls by entries.
        request: where a cancellation from outside arrives; blocks of `served` look there.
    """

    def __init__(
        self, components: Mapping[str, LocalComponent], served: Mapping[str, nn.Module], request: RunningRequest
    ) -> None:
        super().__init__(components)
        self._served = served
        self._request = request
        for module in served.values():
            add_block_checks(module, request.check)
            _keep_no_cache(module)

    def __missing__(self, entry: str) -> LocalComponent:
        name, _, path = entry.partition(".")
        if name not in self._served:
            raise CallError(f"this rank holds no {name}")
        module = self._served[name]
        target = _find_entry(module, path)

        def run(request_id: str, seconds_left: float | None, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = _unpack(args), _unpack(kwargs)
            self._request.begin(request_id, RequestControl(deadline_s=seconds_left))
            try:
                self._request.check()
                result = target(*args, **kwargs)
            finally:
                self._request.end()
            return _pack(result), [generator.get_state() for generator in _generators((args, kwargs))]

        self[entry] = LocalComponent(entry, module, run, is_denoiser=False)
        return self[entry]


def _find_entry(module: nn.Module, path: str) -> Callable[..., Any]:
    target: Any = module
    for part in path.split(".") if path else ():
        if part.startswith("_") or not isinstance(target, nn.Module):
            raise CallError(f"{type(module).__name__} has no entry {path}")
        target = getattr(target, part)
    return target  # type: ignore[no-any-return]


def _keep_no_cache(module: nn.Module) -> None:
    """Lets a language model that encodes text return no key-value cache: nobody reads it, nor can it travel."""
    config = getattr(module, "config", None)
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    for part in parts:
        if getattr(part, "use_cache", False) is True:
            part.use_cache = False


def _generators(value: Any) -> Iterator[torch.Generator]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Generator))


def _pack(value: Any) -> Any:
    """`value` with generators and distributions as tuples of plain data and tensors."""
    return tree_map(_pack_leaf, value)


def _pack_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.Generator):
        return (_GENERATOR, leaf.device.type, leaf.get_state())
    if type(leaf).__name__ in _DISTRIBUTIONS and type(leaf) is _DISTRIBUTIONS[type(leaf).__name__]:
        return (_DISTRIBUTION, type(leaf).__name__, leaf.parameters, bool(getattr(leaf, "deterministic", False)))
    return leaf


def _unpack(value: Any) -> Any:
    return tree_map(_unpack_leaf, value, is_leaf=_is_packed)


def _is_packed(value: Any) -> bool:
    return type(value) is tuple and bool(value) and isinstance(value[0], str) and value[0] in _TAGS


def _unpack_leaf(leaf: Any) -> Any:
    if not _is_packed(leaf):
        return leaf
    if leaf[0] == _GENERATOR:
        generator = torch.Generator(leaf[1])
        generator.set_state(leaf[2].cpu())
        return generator
    kind = _DISTRIBUTIONS[leaf[1]]
    return kind(leaf[2], deterministic=leaf[3]) if kind is DiagonalGaussianDistribution else kind(leaf[2])
