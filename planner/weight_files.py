"""Which files hold a component's weights, chosen as diffusers and transformers choose them."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from planner.errors import CheckpointFormatError
from planner.files import CheckpointFiles, check_name
from planner.safetensors_header import TensorEntry, read_header

_STEMS = {"diffusers": ("diffusion_pytorch_model", "model"), "transformers": ("model", "diffusion_pytorch_model")}
_PICKLE_STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MAX_SHARDS = 1000
MAX_COMPONENT_TENSORS = 20_000
"""Tensors of one component over all its files; the largest seen has 5,000."""

ReadJson = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one component.

    Attributes:
        paths: below the checkpoint, in the order in which the index first names them.
        weight_map: tensor -> path from the index; None for a single file.
        variant: the variant that these are; None for the plain ones.
    """

    paths: tuple[str, ...]
    file_bytes: int
    weight_map: dict[str, str] | None
    weight_format: Literal["safetensors", "pickle"]
    variant: str | None


def find_weight_files(
    files: CheckpointFiles, component: str, *, library: Literal["diffusers", "transformers"], variant: str | None,
    read_json: ReadJson,
) -> WeightFiles:  # fmt: skip
    """Finds a component's weight files; only one variant counts.

    diffusers asks for an index before the single file, transformers the other way round.

    Raises:
        CheckpointFormatError: there are none, or the index is inconsistent.
        UnsafeCheckpointError: the index or a link leads out of the component's folder.
    """
    for wanted in dict.fromkeys((variant, None)):
        for stem in _STEMS[library]:
            found = _find(files, component, stem, wanted, index_first=library == "diffusers", read_json=read_json)
            if found is not None:
                return found
    pickled = _find_pickled(files, component)
    if pickled is not None:
        return pickled
    others = [name for name in files.list_names(component) if name.endswith(".safetensors")]
    variants = sorted(
        {match.group(1) for name in others if (match := re.search(r"model\.([A-Za-z0-9_]+?)[.-]", name))}
        - {"safetensors"}
    )
    advice = f"it has the variants {', '.join(variants)}: ask for one" if variants else "the download is incomplete"
    raise CheckpointFormatError(
        f"{files.location}/{component} has no weights ({_STEMS[library][0]}.safetensors): {advice}"
    )


def _find(
    files: CheckpointFiles, component: str, stem: str, variant: str | None, *, index_first: bool, read_json: ReadJson
) -> WeightFiles | None:
    single = f"{component}/{stem}.{variant}.safetensors" if variant else f"{component}/{stem}.safetensors"
    index = (
        f"{component}/{stem}.safetensors.index.{variant}.json"
        if variant
        else f"{component}/{stem}.safetensors.index.json"
    )
    for path in (index, single) if index_first else (single, index):
        size = files.size(path)
        if size is None:
            continue
        if path == single:
            return WeightFiles((single,), size, None, "safetensors", variant)
        return _read_index(files, component, index, variant, document=read_json(index))
    return None


def _read_index(
    files: CheckpointFiles, component: str, index: str, variant: str | None, *, document: dict[str, Any]
) -> WeightFiles:
    where = f"{files.location}/{index}"
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFormatError(f"{where}: weight_map must be an object of tensor names and files")
    paths: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointFormatError(f"{where}: the file of {tensor!r:.200} is {name!r:.200}, not a name")
        if name not in paths:
            check_name(name, where=where)
            if not name.endswith(".safetensors"):
                raise CheckpointFormatError(f"{where}: {name!r:.200} is not a safetensors file")
            paths[name] = f"{component}/{name}"
    if len(paths) > MAX_SHARDS:
        raise CheckpointFormatError(f"{where} names {len(paths)} files, at most {MAX_SHARDS} are allowed")
    total = 0
    for path in paths.values():
        size = files.size(path)
        if size is None:
            raise CheckpointFormatError(f"{where} names {path}, which is missing: the download is incomplete")
        total += size
    mapped = {tensor: paths[name] for tensor, name in weight_map.items()}
    return WeightFiles(tuple(paths.values()), total, mapped, "safetensors", variant)


def _find_pickled(files: CheckpointFiles, component: str) -> WeightFiles | None:
    listed = [name for name in files.list_names(component) if name.endswith(_PICKLE_SUFFIXES)]
    names = [
        name for stem in _PICKLE_STEMS for name in listed if name in {f"{stem}{suffix}" for suffix in _PICKLE_SUFFIXES}
    ]
    shards = [name for name in listed if re.match(r"^(diffusion_)?pytorch_model-\d+-of-\d+\.", name)]
    chosen = names[:1] or shards or listed[:1]
    if not chosen:
        return None
    paths = tuple(f"{component}/{name}" for name in chosen)
    return WeightFiles(paths, sum(files.size(path) or 0 for path in paths), None, "pickle", None)


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of one component, in the order of their files, and a digest of all headers."""

    tensors: tuple[TensorEntry, ...]
    digest: bytes


def read_tensors(files: CheckpointFiles, found: WeightFiles) -> StoredTensors:
    """Reads the headers of all files, in order, and checks them against the index.

    Raises:
        CheckpointFormatError: a file is malformed, a tensor lies in two files, or the index and the files disagree.
    """
    owner: dict[str, str] = {}
    tensors: list[TensorEntry] = []
    digest = hashlib.sha256()
    for path in found.paths:
        header = read_header(
            lambda offset, length, path=path: files.read(path, offset, length),  # type: ignore[misc]
            file=f"{files.location}/{path}",
            file_bytes=files.size(path) or 0,
        )
        if len(tensors) + len(header.tensors) > MAX_COMPONENT_TENSORS:
            raise CheckpointFormatError(
                f"{files.location}/{path}: with it the component has more than {MAX_COMPONENT_TENSORS} tensors"
            )
        here = dict.fromkeys([tensor.name for tensor in header.tensors], path)
        for name in owner.keys() & here.keys():
            raise CheckpointFormatError(f"{files.location}/{path}: {name!r:.200} is in {owner[name]} too")
        owner.update(here)
        tensors += header.tensors
        digest.update(header.digest)
    _check_weight_map(found.weight_map or {}, owner, location=files.location)
    return StoredTensors(tuple(tensors), digest.digest())


def _check_weight_map(weight_map: dict[str, str], owner: dict[str, str], *, location: str) -> None:
    if weight_map.items() <= owner.items():
        return
    for name, path in weight_map.items():
        if owner.get(name) != path:
            where = owner.get(name, "no file")
            raise CheckpointFormatError(f"{location}: the index says that {name!r:.200} is in {path}, it is in {where}")
