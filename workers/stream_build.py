"""Empty models and the names of their weights: what `from_pretrained` does before it reads the first tensor.

Parameters are built without memory (on the meta device), ties among them kept; buffers are real, since models compute
non-persistent ones (rotary tables) while they are built. Checkpoint keys are mapped one to one onto the model's.
"""

import contextlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import torch
import transformers
from torch import nn

from workers.errors import LoadError

logger = logging.getLogger(__name__)

Library = Literal["diffusers", "transformers"]

_building = threading.Lock()


class NotOneToOneError(LoadError):
    """The checkpoint's tensors have to be split, joined or dequantized: only the library can load them."""


def component_class(library: Library, class_name: str) -> type[Any]:
    """The model class of this name.

    Raises:
        LoadError: the installed library has no such model class.
    """
    package, base = (
        (diffusers, diffusers.ModelMixin) if library == "diffusers" else (transformers, transformers.PreTrainedModel)
    )
    found = getattr(package, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise LoadError(f"{library} {package.__version__} has no model class {class_name!r}; install one that has it")
    return found


def build_empty(model_class: type[Any], folder: Path, *, dtype: torch.dtype) -> nn.Module:
    """Builds the model from its `config.json`, parameters on meta, buffers on the CPU, in evaluation mode, frozen.

    Parameters and persistent buffers have the dtypes that the library would give them (`_keep_in_fp32_modules`).

    Raises:
        NotOneToOneError: the checkpoint is quantized.
        LoadError: the configuration does not fit the class.
    """
    try:
        if issubclass(model_class, diffusers.ModelMixin):
            model = _build_diffusers(model_class, folder, dtype)
        else:
            model = _build_transformers(model_class, folder, dtype)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoadError(f"{folder}: {model_class.__name__} cannot be built from its config.json: {error}") from error
    _set_dtypes(model, dtype)
    model.requires_grad_(False)
    return model.eval()


def map_keys(model: nn.Module, keys: Iterable[str], *, indexed: bool) -> dict[str, str]:
    """Maps the model's names to the checkpoint's keys, renamed as the library renames them.

    Raises:
        NotOneToOneError: some of the model's tensors are made of several of the checkpoint's, or parts of one.
        LoadError: keys are missing, or left over.
    """
    is_diffusers = isinstance(model, diffusers.ModelMixin)
    renamed = _rename_diffusers(model, keys, indexed) if is_diffusers else _rename_transformers(model, keys)
    wanted = set(model.state_dict().keys())
    if not is_diffusers:
        _tie_absent(model, wanted, present=set(renamed))
        wanted = {name for name, tensor in _unique_states(model, wanted)} | (wanted & set(renamed))
    else:
        wanted = {name for name, tensor in _unique_states(model, wanted, prefer=set(renamed))}
    missing = sorted(wanted - set(renamed))
    if missing and not _without(set(missing), getattr(model, "_keys_to_ignore_on_load_missing", None)):
        raise NotOneToOneError(f"{type(model).__name__} computes {_some(missing)} itself")
    left_over = _without(set(renamed) - set(model.state_dict()), _ignorable_keys(model))
    if missing or left_over:
        raise LoadError(
            f"the checkpoint does not fit {type(model).__name__}: "
            f"missing {_some(missing)}, left over {_some(left_over)}"
        )
    return {name: key for name, key in renamed.items() if name in wanted}


def _build_diffusers(model_class: type[Any], folder: Path, dtype: torch.dtype) -> nn.Module:
    from diffusers.models.model_loading_utils import _fetch_remapped_cls_from_config
    from diffusers.models.modeling_utils import LegacyModelMixin, no_init_weights

    config, unused = model_class.load_config(folder, return_unused_kwargs=True, local_files_only=True)
    if config.get("quantization_config") is not None:
        raise NotOneToOneError(f"{folder} holds quantized weights")
    if issubclass(model_class, LegacyModelMixin):
        model_class = _fetch_remapped_cls_from_config(config, model_class)
    with no_init_weights(), _empty_parameters(dtype):
        model: Any = model_class.from_config(config, **unused)
    model.register_to_config(_name_or_path=str(folder))
    return cast(nn.Module, model)


def _build_transformers(model_class: type[Any], folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import initialization

    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    if getattr(config, "quantization_config", None) is not None:
        raise NotOneToOneError(f"{folder} holds quantized weights")
    config.name_or_path = str(folder)
    with initialization.no_tie_weights(), _empty_parameters(dtype):
        model: Any = model_class._from_config(config, dtype=dtype)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return cast(nn.Module, model)


@contextlib.contextmanager
def _empty_parameters(dtype: torch.dtype) -> Iterator[None]:
    """Within it, registered parameters lose their memory and keep their ties; the default dtype is `dtype`."""
    register = nn.Module.register_parameter
    memo: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the originals are held, so that no id is reused

    def register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is None or param.is_meta:
            return
        if id(param) not in memo:
            empty = type(param)(param.to("meta"), requires_grad=param.requires_grad)
            empty.__dict__.update(param.__dict__)
            memo[id(param)] = (param, empty)
        module._parameters[name] = memo[id(param)][1]

    before = torch.get_default_dtype()
    with _building:
        nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
            torch.set_default_dtype(before)


def _set_dtypes(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives floating parameters and persistent buffers their final dtype, without memory for parameters."""
    kept = _kept_in_float32(model, dtype)
    persistent = set(model.state_dict())
    done: set[int] = set()
    for name, tensor in _named_states(model):
        if name not in persistent or not tensor.is_floating_point() or id(tensor) in done:
            continue
        done.add(id(tensor))
        wanted = torch.float32 if kept(name) else dtype
        if tensor.dtype is not wanted:
            tensor.data = tensor.data.to(wanted)


def _kept_in_float32(model: nn.Module, dtype: torch.dtype) -> Any:
    if isinstance(model, diffusers.ModelMixin):
        listed = getattr(model, "_keep_in_fp32_modules", None) or []
        islands = set([listed] if isinstance(listed, str) else listed)
        return lambda name: not islands.isdisjoint(name.split("."))
    plan = model._get_dtype_plan(dtype)  # type: ignore[operator]
    if not plan:
        return lambda _name: False
    from transformers.core_model_loading import build_glob_alternation

    pattern = build_glob_alternation(list(plan))[0]
    return lambda name: pattern.search(name) is not None


def _rename_diffusers(model: Any, keys: Iterable[str], indexed: bool) -> dict[str, str]:
    renamed = OrderedDict((key, key) for key in keys)
    if not indexed:  # as the library: checkpoints with an index are newer than the old attention names
        model._fix_state_dict_keys_on_load(renamed)
    return dict(renamed)


def _rename_transformers(model: Any, keys: Iterable[str]) -> dict[str, str]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    expected = model.state_dict()
    prefix = model.base_model_prefix
    renamed: dict[str, str] = {}
    for key in keys:
        name, converted = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:
            name, converted = key, None
        if converted is not None and name in expected:
            raise NotOneToOneError(f"{type(model).__name__}: {key} has to be converted ({converted})")
        if name in renamed:
            raise NotOneToOneError(f"{type(model).__name__}: {renamed[name]} and {key} are both {name}")
        renamed[name] = key
    return renamed


def _tie_absent(model: Any, wanted: set[str], *, present: set[str]) -> None:
    """Ties the weights of a transformers model as far as the checkpoint leaves them out; `wanted` names its states."""
    for target, source in dict(getattr(model, "all_tied_weights_keys", {})).items():
        if target not in wanted or source not in wanted:
            continue
        if target in present and source in present:
            continue  # the checkpoint has a value for each
        if source not in present and target in present:
            target, source = source, target
        module_name, _, parameter_name = target.rpartition(".")
        shared = model.get_parameter_or_buffer(source)
        owner = model.get_submodule(module_name)
        setattr(owner, parameter_name, shared)
        model._adjust_bias(owner, shared)


def _unique_states(
    model: nn.Module, wanted: set[str], prefer: frozenset[str] | set[str] = frozenset()
) -> list[tuple[str, torch.Tensor]]:
    """One name for each tensor, of tied ones the name in `prefer`, if any."""
    chosen: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in _named_states(model):
        if name in wanted and (id(tensor) not in chosen or (name in prefer and chosen[id(tensor)][0] not in prefer)):
            chosen[id(tensor)] = (name, tensor)
    return list(chosen.values())


def _named_states(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers under all their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _ignorable_keys(model: nn.Module) -> list[str]:
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])
    if isinstance(model, transformers.PreTrainedModel):
        buffers = [name for name, _ in model.named_buffers()]
        # Older checkpoints hold these, which are non-persistent now.
        if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
            patterns.append(r"rotary_emb\.inv_freq")
        if any(name.endswith("position_ids") for name in buffers):
            patterns.append(r"(^|\.)position_ids$")
    return patterns


def _without(names: set[str], patterns: Iterable[str] | None) -> list[str]:
    compiled = [re.compile(pattern) for pattern in patterns or ()]
    return sorted(name for name in names if not any(pattern.search(name) for pattern in compiled))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
