"""Loads a component straight to its final place: each byte that a rank keeps is read once, and no other.

Unsharded, every tensor goes from its file to the device; sharded, only this rank's part does. Where the checkpoint's
tensors do not map one to one onto the model's, the library's `from_pretrained` does it, and the result says so.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import ShardUnit
from workers.errors import LoadError
from workers.shard_conditions import model_class_name
from workers.sharding import Sharding, apply_sharding
from workers.stream_build import Library, NotOneToOneError, build_empty, component_class, map_keys
from workers.stream_copy import NUM_READERS, ReadJob, run_jobs
from workers.stream_files import StoredTensor, find_weight_files, read_headers

logger = logging.getLogger(__name__)


class TensorPlaces(Protocol):
    """Where the memory of a model's tensors comes from."""

    def allocate(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for one parameter or buffer, not yet filled."""

    def needs_reading(self, name: str) -> bool:
        """Whether this rank reads the tensor from its file; False if another one reads it to the same place."""


@dataclass(frozen=True, slots=True)
class LoadedComponent:
    """A component ready to be called: in evaluation mode, frozen, nothing on meta.

    Attributes:
        bytes_read: from the files, by this rank.
        loaded_by: "library" where `from_pretrained` had to do it (through a whole copy in host memory).
        sharding: how it lies on the mesh; None if unsharded.
    """

    module: nn.Module
    bytes_read: int
    seconds: float
    loaded_by: Literal["direct", "library"]
    sharding: Sharding | None


@torch.inference_mode(False)
def load_component(
    folder: Path,
    *,
    library: Library,
    class_name: str,
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None = None,
    mesh: DeviceMesh | None = None,
    shard_by: ShardUnit = ShardUnit.BLOCKS,
    compile_blocks: Callable[[nn.Module], object] | None = None,
    place: Callable[[nn.Module], TensorPlaces] | None = None,
    num_readers: int = NUM_READERS,
    on_bytes: Callable[[int], None] | None = None,
) -> LoadedComponent:
    """Loads the component in `folder`; with a mesh, every rank of it must call this.

    Peak device bytes: what the rank keeps, and two staging pieces a reader where the stored dtype differs. Peak host
    bytes beside that: `stream_copy.staging_bytes()`. Called from one thread at a time for building (guarded), reads of
    two components may overlap.

    Args:
        folder: holds `config.json` and safetensors files.
        dtype: of floating parameters and persistent buffers, except the class's float32 islands.
        device: where an unsharded component goes; a sharded one goes to the mesh's device.
        variant: read this variant of the weights if the component has it.
        mesh: shard over it, with `shard_by` as the units that are gathered at once.
        compile_blocks: called on the empty model before it is sharded (the gathering stands around the compiled call).
        place: given the empty model, says where the memory of its tensors comes from; the device if None. For
            streaming: `streaming_place`.
        on_bytes: told of each finished piece, from reader threads.

    Raises:
        LoadError: files are torn or missing, keys do not fit the model, or something stayed without a value.
    """
    start = time.monotonic()
    files = find_weight_files(folder, library=library, variant=variant)
    stored = read_headers(files.files)
    model_class = component_class(library, class_name)
    try:
        model = build_empty(model_class, folder, dtype=dtype)
        keys = map_keys(model, stored, indexed=files.indexed)
    except NotOneToOneError as reason:
        return _load_by_library(
            model_class, folder, dtype=dtype, device=device if place is None else torch.device("cpu"),
            variant=variant, mesh=mesh, shard_by=shard_by,
            compile_blocks=compile_blocks, reason=reason, start=start,
        )  # fmt: skip
    if compile_blocks is not None:
        compile_blocks(model)
    sharding = apply_sharding(model, mesh=mesh, shard_by=shard_by) if mesh is not None else None
    fill = _Filler(model, device, place(model) if place is not None else None, sharding)
    jobs = [job for name, key in keys.items() for job in fill.jobs(name, stored[key])]
    bytes_read = run_jobs(jobs, num_readers=num_readers, on_bytes=on_bytes)
    fill.finish()
    _prove_complete(model, folder, sharding)
    seconds = time.monotonic() - start
    logger.info("%s: %.3f GB in %.2f s, %.2f GB/s", folder, bytes_read / 1e9, seconds, bytes_read / 1e9 / seconds)
    return LoadedComponent(model, bytes_read, seconds, "direct", sharding)


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """Every tensor straight on the device."""

    device: torch.device

    def allocate(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        return torch.empty(shape, dtype=dtype, device=self.device)

    def needs_reading(self, name: str) -> bool:  # noqa: ARG002
        return True


class _Filler:
    """Replaces a model's empty tensors by real ones that reads go into."""

    def __init__(
        self, model: nn.Module, device: torch.device, places: TensorPlaces | None, sharding: Sharding | None
    ) -> None:
        self._model = model
        self._device = device
        self._sharding = sharding
        self._places = places or _OnDevice(device)
        self._names: dict[Tensor, list[str]] = {}
        for name, tensor in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(tensor, []).append(name)
        self._parameters = {name: tensor for tensor, names in self._names.items() for name in names}
        self._buffers = dict(model.named_buffers(remove_duplicate=False))

    def jobs(self, name: str, stored: StoredTensor) -> list[ReadJob]:
        """Allocates the tensor's final memory, puts it into the model, and says what to read into it."""
        empty = self._parameters.get(name, self._buffers.get(name))
        if empty is None:
            raise LoadError(f"{model_class_name(self._model)} has no tensor {name!r}")
        if tuple(empty.shape) != stored.shape:
            raise LoadError(
                f"{stored.file}: {name} has shape {list(stored.shape)}, {model_class_name(self._model)} by its "
                f"config.json needs {list(empty.shape)}; the weights belong to another configuration"
            )
        piece = None if self._sharding is None else self._sharding.piece(name)
        if piece is not None:
            offset, target = stored.offset_of(piece.first), piece.values
        else:
            offset, target = stored.offset, self._place_whole(name, empty)
        if not target.numel() or not self._places.needs_reading(name):
            return []
        return [ReadJob(stored.file, offset, stored.dtype, target.view(-1))]

    def finish(self) -> None:
        """Moves the buffers that no file holds to the device."""
        for owner in self._model.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and not buffer.is_meta and buffer.device != self._device:
                    owner._buffers[name] = buffer.to(self._device)

    def _place_whole(self, name: str, empty: Tensor) -> Tensor:
        values = self._places.allocate(name, empty.shape, empty.dtype)
        is_parameter = name in self._parameters
        replacement: Tensor = nn.Parameter(values, requires_grad=False) if is_parameter else values
        replacement.__dict__.update(empty.__dict__)
        for alias in self._names.get(empty, [name]):
            owner_name, _, attribute = alias.rpartition(".")
            owner = self._model.get_submodule(owner_name)
            if is_parameter:
                owner._parameters[attribute] = replacement  # type: ignore[assignment]
            else:
                owner._buffers[attribute] = replacement
        return values


def _load_by_library(
    model_class: type,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None,
    mesh: DeviceMesh | None,
    shard_by: ShardUnit,
    compile_blocks: Callable[[nn.Module], object] | None,
    reason: NotOneToOneError,
    start: float,
) -> LoadedComponent:
    """The way round: a whole copy in host memory, then to the device, then (on a mesh) sharded.

    Raises:
        LoadError: the library cannot either.
    """
    logger.warning("%s is loaded by from_pretrained, through a whole copy in host memory: %s", folder, reason)
    try:
        module: nn.Module = model_class.from_pretrained(  # type: ignore[attr-defined]
            folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise LoadError(f"{folder}: {model_class.__name__}.from_pretrained failed: {error}") from error
    module.requires_grad_(False).eval().to(device)
    if compile_blocks is not None:
        compile_blocks(module)
    sharding = apply_sharding(module, mesh=mesh, shard_by=shard_by) if mesh is not None else None
    _prove_complete(module, folder, sharding)
    bytes_read = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return LoadedComponent(module, bytes_read, time.monotonic() - start, "library", sharding)


def _prove_complete(model: nn.Module, folder: Path, sharding: Sharding | None) -> None:
    """Nothing is left over: no parameter and no buffer without memory, no part of one that was not read.

    Raises:
        LoadError: names what has none.
    """
    states = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in states if tensor.is_meta]
    empty += sorted(sharding.unfilled) if sharding is not None else []
    if empty:
        shown = ", ".join(empty[:5])
        raise LoadError(f"{folder}: {len(empty)} tensors got no value ({shown}); the checkpoint lacks them")
