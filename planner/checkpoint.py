"""A checkpoint as the planner sees it: components, blocks, bytes and dtypes, from headers alone; no tensor is read."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from planner import tables
from planner.boundaries import CUT_FROM_BYTES, BlockRule
from planner.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    UnknownComponentError,
    UnsafeCheckpointError,
)
from planner.files import NOTHING_THERE_ADVICE, SINGLE_FILE_ADVICE, CheckpointFiles, check_name, open_files
from planner.json_text import CONFIG_LIMITS, WEIGHT_INDEX_LIMITS, JsonLimits, check_numbers, parse_object
from planner.kinds import classify_component
from planner.plan import ComponentKind, ServingDefaults
from planner.safetensors_header import TensorEntry
from planner.weight_files import find_weight_files, read_tensors
from planner.weights import Block, WeightTally, group_weights

INDEX_FILE = "model_index.json"
DEFAULTS_FILE = "heliograph.json"
_HOLDS_SEVERAL = re.compile(r".*Multi(ControlNet|Adapter)")
MAX_COMPONENTS = 64
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".gguf", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class PlacedSizes:
    """Bytes of a component once it is loaded in some dtype: as a whole, outside its blocks, and block by block.

    `largest_part` and `largest_rest_part` are the most that is gathered at once where it is sharded by parts.
    """

    whole: int
    rest: int
    blocks: tuple[int, ...]
    largest_part: int = 0
    largest_rest_part: int = 0

    @property
    def largest_block(self) -> int:
        """0 without blocks."""
        return max(self.blocks, default=0)


@dataclass(frozen=True, slots=True)
class Component:
    """One component with weights.

    Attributes:
        name: key in `model_index.json`, also its folder.
        library: whose loading rules its weights follow.
        module: library as the index says: `diffusers`, `transformers`, or a module of `diffusers.pipelines`.
        config: its `config.json`.
        payload_bytes: sum of its tensors' byte ranges, or the files' sizes where they are pickled.
        tally: what its tensors amount to once placed.
        blocks: its blocks, in order of first appearance; empty if no boundary rule matches.
        rest: tally of everything outside the blocks.
        rest_part_share: share of its largest part in it; 1 if it is not cut.
        weight_files: paths below the checkpoint, in the order of the index.
        weight_format: `pickle` is sized for information and refused for loading.
        index_position: position in `model_index.json`.
    """

    name: str
    library: Literal["diffusers", "transformers"]
    module: str
    class_name: str
    kind: ComponentKind
    config: Mapping[str, Any]
    payload_bytes: int
    num_parameters: int
    dtype_bytes: Mapping[str, int]
    tally: WeightTally
    blocks: tuple[Block, ...]
    rest: WeightTally
    block_rule: BlockRule | None
    weight_files: tuple[str, ...]
    weight_format: Literal["safetensors", "pickle"]
    variant: str | None
    index_position: int
    context_parallel: bool = False
    rest_part_share: float = 1.0
    _sizes: dict[str, PlacedSizes] = field(default_factory=dict, repr=False, compare=False)

    def placed(self, dtype: str) -> PlacedSizes:
        """Sizes in `dtype`; remembered, because a search asks thousands of times."""
        found = self._sizes.get(dtype)
        if found is None:
            blocks = tuple(block.tally.placed_bytes(dtype) for block in self.blocks)
            found = PlacedSizes(
                whole=self.tally.placed_bytes(dtype),
                rest=(rest := self.rest.placed_bytes(dtype)),
                blocks=blocks,
                largest_part=max(map(_cut, blocks, (b.largest_part_share for b in self.blocks)), default=0),
                largest_rest_part=_cut(rest, self.rest_part_share),
            )
            self._sizes[dtype] = found
        return found


def _cut(num_bytes: int, largest_part_share: float) -> int:
    """Bytes of the largest part of a block, or of the block where it is too small to be cut."""
    return math.ceil(num_bytes * largest_part_share) if num_bytes >= CUT_FROM_BYTES else num_bytes


@dataclass(frozen=True, slots=True)
class WeightlessComponent:
    """A scheduler, tokenizer or processor: its configuration is read when the pipeline is built."""

    name: str
    module: str
    class_name: str
    index_position: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in diffusers layout.

    Attributes:
        path: folder or URL, as given.
        fingerprint: hex digest over everything read; the same content gives the same digest wherever it lies.
        options: plain values of `model_index.json` (`boundary_ratio`, ...).
    """

    path: str
    pipeline_class: str
    components: tuple[Component, ...]
    weightless: tuple[WeightlessComponent, ...]
    options: Mapping[str, Any]
    defaults: ServingDefaults
    variant: str | None
    fingerprint: str

    @property
    def payload_bytes(self) -> int:
        """Bytes of all components' tensors."""
        return sum(component.payload_bytes for component in self.components)

    def find(self, name: str) -> Component | None:
        """The component with weights of that name."""
        return next((component for component in self.components if component.name == name), None)


def read_checkpoint(path: str, *, variant: str | None = None) -> Checkpoint:
    """Reads a checkpoint's index, configurations and safetensors headers (a few kilobytes a file).

    Args:
        path: local folder or fsspec URL.
        variant: weight variant (`fp16`, ...), chosen as diffusers does: components that lack it use the plain one.

    Raises:
        CheckpointError: what is wrong, in which file; its subclass says which sort (see `planner.errors`).
    """
    path = str(path)
    if path.partition("?")[0].endswith(SINGLE_FILE_SUFFIXES) and not Path(path).is_dir():
        raise CheckpointNotFoundError(
            f"{path} is a single file, not a folder in diffusers layout; {SINGLE_FILE_ADVICE}"
        )
    if variant is not None:
        check_name(variant, where="the variant")
    return _Reader(open_files(path), variant).read(path)


class _Reader:
    """Reads one checkpoint, and digests all that it reads."""

    def __init__(self, files: CheckpointFiles, variant: str | None) -> None:
        self._files = files
        self._variant = variant
        self._digest = hashlib.sha256()

    def read(self, path: str) -> Checkpoint:
        if self._files.size(INDEX_FILE) is None:
            raise CheckpointNotFoundError(f"{self._files.location} has no {INDEX_FILE}: {self._missing_index_advice()}")
        index = self._read_json(INDEX_FILE, missing=CheckpointNotFoundError, advice="it was there a moment ago")
        pipeline_class = index.get("_class_name")
        if not isinstance(pipeline_class, str) or not tables.is_pipeline(pipeline_class):
            raise UnknownComponentError(
                f"{self._files.location}/{INDEX_FILE}: the pipeline class {pipeline_class!r:.200} is not in diffusers "
                f"{tables.table_version('diffusers')}; remote code is never run"
            )
        components: list[Component] = []
        weightless: list[WeightlessComponent] = []
        options: dict[str, Any] = {}
        for position, (name, value) in enumerate(index.items()):
            if name.startswith("_"):
                continue
            if not _is_class_entry(value):
                options[name] = value
                continue
            module, class_name = value
            if module is None and class_name is None:
                continue
            self._check_class(name, module, class_name)
            if len(components) + len(weightless) >= MAX_COMPONENTS:
                raise CheckpointFormatError(
                    f"{self._files.location}/{INDEX_FILE} lists more than {MAX_COMPONENTS} components"
                )
            if tables.find_model(module, class_name) is None:
                weightless.append(WeightlessComponent(name, module, class_name, position))
            else:
                components.append(self._read_component(name, module, class_name, position))
        self._check_variant(components)
        if not components:
            raise CheckpointFormatError(f"{self._files.location}/{INDEX_FILE} lists no component with weights")
        defaults = self._read_defaults()
        return Checkpoint(
            path=path,
            pipeline_class=pipeline_class,
            components=tuple(components),
            weightless=tuple(weightless),
            options=options,
            defaults=defaults,
            variant=self._variant,
            fingerprint=self._digest.hexdigest(),
        )

    def _missing_index_advice(self) -> str:
        names = self._files.list_names(".")
        single = next((name for name in names if name.endswith(SINGLE_FILE_SUFFIXES)), None)
        if single is not None:
            return f"it holds {single}, which looks like a single-file checkpoint; {SINGLE_FILE_ADVICE}"
        if not names and "://" in self._files.location:
            return NOTHING_THERE_ADVICE
        return "give the folder that holds it (a checkpoint in diffusers layout)"

    def _check_class(self, name: str, module: Any, class_name: Any) -> None:
        where = f"{self._files.location}/{INDEX_FILE}"
        check_name(name, where=where)
        if not isinstance(module, str) or not isinstance(class_name, str):
            raise CheckpointFormatError(
                f"{where}: {name} must name a library and a class, not {[module, class_name]!r:.200}"
            )
        if not tables.is_known(module, class_name):
            raise UnknownComponentError(
                f"{where}: {name} is {class_name!r:.200} of {module!r:.200}, which neither diffusers "
                f"{tables.table_version('diffusers')} nor transformers {tables.table_version('transformers')} has; "
                f"remote code is never run"
            )
        if _HOLDS_SEVERAL.match(class_name):
            raise CheckpointFormatError(
                f"{where}: {name} is a {class_name}, several models in folders of their own; a component is one model: "
                f"leave one of them in the checkpoint"
            )

    def _read_component(self, name: str, module: str, class_name: str, position: int) -> Component:
        declaration = tables.find_model(module, class_name)
        assert declaration is not None
        library: Literal["diffusers", "transformers"] = "transformers" if declaration.uses_transformers else "diffusers"
        config = self._read_json(
            f"{name}/config.json", missing=CheckpointFormatError, advice="the component is incomplete"
        )
        found = find_weight_files(
            self._files, name, library=library, variant=self._variant, read_json=self._read_weight_index
        )
        self._digest.update(repr((found.paths, found.file_bytes)).encode())
        tensors: tuple[TensorEntry, ...] = ()
        if found.weight_format == "safetensors":
            stored = read_tensors(self._files, found)
            tensors = stored.tensors
            self._digest.update(stored.digest)
        keep = declaration.keep_in_fp32
        grouped = group_weights(
            tensors,
            class_name=class_name,
            library=library,
            keep_in_fp32=keep,
            keep_in_fp32_strict=declaration.keep_in_fp32_strict,
            block_classes=declaration.block_classes,
            containers=declaration.containers,
            tied=declaration.tied_by(config),
        )
        return Component(
            name=name,
            library=library,
            module=module,
            class_name=class_name,
            kind=classify_component(name, class_name=class_name, library=library),
            config=config,
            payload_bytes=found.file_bytes if found.weight_format == "pickle" else grouped.tally.payload_bytes,
            num_parameters=grouped.tally.num_parameters,
            dtype_bytes=grouped.dtype_bytes,
            tally=grouped.tally,
            blocks=grouped.blocks,
            rest=grouped.rest,
            block_rule=grouped.rule,
            weight_files=found.paths,
            weight_format=found.weight_format,
            variant=found.variant,
            index_position=position,
            context_parallel=declaration.context_parallel,
            rest_part_share=grouped.rest_part_share,
        )

    def _check_variant(self, components: list[Component]) -> None:
        if self._variant is not None and components and not any(c.variant == self._variant for c in components):
            raise CheckpointFormatError(
                f"{self._files.location}: no component has weights of the variant {self._variant!r}; "
                f"leave the variant out"
            )

    def _read_defaults(self) -> ServingDefaults:
        if self._files.size(DEFAULTS_FILE) is None:
            return ServingDefaults()
        document = self._read_json(DEFAULTS_FILE, missing=CheckpointFormatError, advice="")
        try:
            return ServingDefaults.model_validate(document.get("defaults", {}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["defaults", *(str(part) for part in first["loc"])])
            raise CheckpointFormatError(f"{self._files.location}/{DEFAULTS_FILE}: {where}: {first['msg']}") from error

    def _read_weight_index(self, name: str) -> dict[str, Any]:
        advice = "the component is incomplete"
        return self._read_json(name, missing=CheckpointFormatError, advice=advice, limits=WEIGHT_INDEX_LIMITS)

    def _read_json(
        self, name: str, *, missing: type[CheckpointError], advice: str, limits: JsonLimits = CONFIG_LIMITS
    ) -> dict[str, Any]:
        where = f"{self._files.location}/{name}"
        size = self._files.size(name)
        if size is None:
            raise missing(f"{self._files.location} has no {name}: {advice}")
        if size > limits.num_bytes:
            raise CheckpointFormatError(f"{where} has {size} bytes, at most {limits.num_bytes} are read")
        raw = self._files.read(name, 0, size)
        self._digest.update(f"{name}|{len(raw)}|".encode())
        self._digest.update(raw)
        # Python's reader, and with it diffusers, takes the last of two equal names in a configuration.
        duplicates: Literal["refused", "last wins"] = "last wins" if name.endswith("config.json") else "refused"
        document = parse_object(raw, where=where, what="it", limits=limits, duplicates=duplicates)
        check_numbers(document, where=where)
        return document


def _is_class_entry(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(part is None or isinstance(part, str) for part in value)


def check_loadable(checkpoint: Checkpoint) -> None:
    """Refuses pickled weights.

    Raises:
        UnsafeCheckpointError: a component has only pickled weights.
    """
    for component in checkpoint.components:
        if component.weight_format == "pickle":
            raise UnsafeCheckpointError(
                f"{checkpoint.path}/{component.weight_files[0]}: {component.name} has only pickled weights "
                f"({component.payload_bytes} bytes), which are never loaded because pickle runs code; convert them: "
                f"load with diffusers where you trust the file, then save_pretrained(FOLDER, safe_serialization=True)"
            )
