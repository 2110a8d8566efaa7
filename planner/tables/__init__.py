"""What diffusers and transformers declare about their classes, and what decoders take, from generated JSON.

Made by `tests.tools.make_tables` and `tests.tools.make_decoder_table`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ModelDeclaration:
    """What a model class declares.

    Attributes:
        block_classes: `_repeated_blocks` and `_no_split_modules`, each name once.
        containers: containers (numbers as `*`) that hold those classes in a default instance.
        keep_in_fp32: parts of parameter names that stay in float32 under a 16-bit dtype.
        keep_in_fp32_strict: transformers' list that holds for bfloat16 too; diffusers' list always does.
        tied: parameter -> the parameter whose storage it shares, where the configuration ties.
        ties: whether it does if it does not say; `always` if what it says does not count.
        uses_transformers: its weights are read by transformers' rules.
        context_parallel: diffusers has a sequence parallel plan for it.
    """

    block_classes: tuple[str, ...]
    containers: tuple[str, ...]
    keep_in_fp32: tuple[str, ...]
    keep_in_fp32_strict: tuple[str, ...]
    tied: Mapping[str, str]
    ties: bool | Literal["always"]
    uses_transformers: bool
    context_parallel: bool

    def tied_by(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """`tied` for a model of this configuration."""
        ties = self.ties == "always" or config.get("tie_word_embeddings", self.ties)
        return self.tied if ties else {}


def find_model(library: str, class_name: str) -> ModelDeclaration | None:
    """The declaration of a model class; None if `library` has no such model.

    `library` is `diffusers`, `transformers`, or a module of `diffusers.pipelines` (as `model_index.json` may say).
    """
    table = _load("transformers" if library == "transformers" else "diffusers")
    if library not in {"diffusers", "transformers"} and class_name not in table["modules"].get(library, ()):
        return None
    entry = table["models"].get(class_name)
    if entry is None:
        return None
    listed = [*entry.get("repeated_blocks", ()), *entry.get("no_split_modules", ())]
    return ModelDeclaration(
        block_classes=tuple(dict.fromkeys(listed)),
        containers=tuple(entry.get("containers", ())),
        keep_in_fp32=tuple(entry.get("keep_in_fp32", ())),
        keep_in_fp32_strict=tuple(entry.get("keep_in_fp32_strict", ())),
        tied=entry.get("tied", {}),
        ties=entry.get("ties", False),
        uses_transformers=library == "transformers" or entry.get("base") == "transformers",
        context_parallel=bool(entry.get("context_parallel")),
    )


def model_names(library: str) -> tuple[str, ...]:
    """Names of the model classes that the table of `library` describes."""
    return tuple(_load(library)["models"])


def is_known(library: str, class_name: str) -> bool:
    """Tells whether `library` has a class of that name that a pipeline may hold."""
    if find_model(library, class_name) is not None:
        return True
    if library in {"diffusers", "transformers"}:
        return class_name in _others(library)
    return class_name in _load("diffusers")["modules"].get(library, ())


def is_pipeline(class_name: str) -> bool:
    """Tells whether diffusers has a pipeline class of that name."""
    return class_name in _pipelines()


def table_version(library: str) -> str:
    """The version of the library that a table was made from (`decoders`: diffusers')."""
    return str(_load(library)["version"])


def counted_decoders() -> Mapping[str, Any]:
    """What `tests.tools.make_decoder_table` counted, by class of autoencoders; see `planner.decoding`."""
    decoders: dict[str, Any] = _load("decoders")["decoders"]
    return decoders


@cache
def _load(library: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / f"{library}.json").read_text("utf-8"))
    return table


@cache
def _others(library: str) -> frozenset[str]:
    return frozenset(_load(library)["others"])


@cache
def _pipelines() -> frozenset[str]:
    return frozenset(_load("diffusers")["pipelines"])
