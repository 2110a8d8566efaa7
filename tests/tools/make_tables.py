"""Generates `planner/tables/*.json`: what diffusers and transformers declare about their classes.

    python -m tests.tools.make_tables

The planner must not import either library; a test compares the tables with the installed versions.
"""

import ast
import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights

TABLES = Path(__file__).parents[2] / "planner" / "tables"
ATTRIBUTES = {
    "repeated_blocks": "_repeated_blocks",
    "no_split_modules": "_no_split_modules",
    "keep_in_fp32": "_keep_in_fp32_modules",
    "keep_in_fp32_strict": "_keep_in_fp32_modules_strict",
}


def main() -> None:
    """Writes both tables."""
    torch.set_num_threads(1)
    TABLES.mkdir(parents=True, exist_ok=True)
    for name, table in (("diffusers", make_diffusers_table()), ("transformers", make_transformers_table())):
        (TABLES / f"{name}.json").write_text(to_json(table))
        print(name, table["version"], len(table["models"]), "models")


def to_json(table: dict[str, Any]) -> str:
    """The table with one line a class, sorted, so that a change of version reads well in a diff."""
    models = ",\n".join(
        f"  {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(table["models"].items())
    )
    rest = {key: value for key, value in table.items() if key != "models"}
    head = json.dumps(rest, sort_keys=True, indent=1)[:-2]
    return f'{head},\n "models": {{\n{models}\n }}\n}}\n'


def make_diffusers_table() -> dict[str, Any]:
    """What `model_index.json` may name: models, schedulers, pipelines, and models that live in pipeline modules."""
    structure = diffusers._import_structure
    exported = _exported_names(diffusers)
    pipelines = sorted(n for n in exported if n.endswith(("Pipeline", "PipelineOutput")) or "Pipeline" in n)
    models = {
        name: describe(getattr(diffusers, name)) for name in sorted(structure["models"]) if _is_model(diffusers, name)
    }
    others = sorted(exported - set(models) - set(pipelines))
    modules: dict[str, list[str]] = {}
    for module, classes in _pipeline_module_classes().items():
        modules[module] = sorted(classes)
        for name, cls in classes.items():
            if cls is not None and name not in models:
                models[name] = describe(cls)
    return {
        "version": diffusers.__version__,
        "models": models,
        "pipelines": pipelines,
        "others": others,
        "modules": modules,
    }


def make_transformers_table() -> dict[str, Any]:
    """Every exported class; containers of blocks only for models that diffusers' pipelines use."""
    exported = _exported_names(transformers)
    used = _transformers_names_in_diffusers()
    classes = _parse_classes(Path(transformers.__file__).parent / "models")
    models: dict[str, Any] = {}
    for name in sorted(exported):
        if name not in classes or not _inherits(name, classes, {"PreTrainedModel"}):
            continue
        if name in used:
            models[name] = describe(getattr(transformers, name))
        else:
            models[name] = {
                key: value for key, attr in ATTRIBUTES.items() if (value := _inherited(name, attr, classes))
            }
    preprocessors = {n for n in exported - set(models) if _is_preprocessor(n)}
    # Aliases that `dir` does not list, but that checkpoints name: T5TokenizerFast, CLIPImageProcessorFast, ...
    aliases = {n + "Fast" for n in preprocessors} | {
        re.sub("ImageProcessor$", "FeatureExtractor", n) for n in preprocessors
    }
    others = sorted(preprocessors | {n for n in aliases if hasattr(transformers, n)})
    return {"version": transformers.__version__, "models": models, "others": others}


def describe(cls: type) -> dict[str, Any]:
    """What a model class declares, and in which containers a default instance holds the declared blocks."""
    entry: dict[str, Any] = {}
    for key, attribute in ATTRIBUTES.items():
        value = getattr(cls, attribute, None)
        if value:
            entry[key] = (
                sorted(value)
                if isinstance(value, set | frozenset)
                else [value]
                if isinstance(value, str)
                else list(value)
            )
    if getattr(cls, "_cp_plan", None):
        entry["context_parallel"] = True
    if issubclass(cls, transformers.PreTrainedModel):
        entry["base"] = "transformers"
        tied = getattr(cls, "_tied_weights_keys", None)
        if isinstance(tied, dict) and tied:
            entry["tied"] = dict(sorted(tied.items()))
            entry["ties"] = _ties(cls)
    containers = find_containers(cls, [*entry.get("repeated_blocks", ()), *entry.get("no_split_modules", ())])
    if containers:
        entry["containers"] = containers
    return entry


def _ties(cls: Any) -> str | bool:
    """Whether a configuration ties: by its `tie_word_embeddings`, of which this is the default, or `always` (T5's)."""
    if cls.config_class(tie_word_embeddings=False).tie_word_embeddings:
        return "always"
    return bool(cls.config_class().tie_word_embeddings)


def find_containers(cls: type, class_names: Iterable[str]) -> list[str]:
    """Containers (numbers as `*`) whose numbered entries are of the declared classes, in a default instance on meta."""
    wanted = set(class_names)
    if not wanted:
        return []
    try:
        with init_empty_weights():
            model = cls(cls.config_class()) if issubclass(cls, transformers.PreTrainedModel) else cls()
    except Exception as error:
        print(f"{cls.__name__}: no default instance ({type(error).__name__}: {str(error)[:80]})")
        return []
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        container, _, entry = name.rpartition(".")
        if entry.isdigit() and container and type(module).__name__ in wanted:
            found[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", container)] = None
    return list(found)


def _exported_names(module: Any) -> set[str]:
    return {n for n in dir(module) if not n.startswith("_") and n[0].isupper() and hasattr(module, n)}


def _is_model(module: Any, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, type) and issubclass(value, torch.nn.Module)


def _is_preprocessor(name: str) -> bool:
    return bool(
        re.search(
            r"(Tokenizer|TokenizerFast|Processor|FeatureExtractor|ImageProcessorFast|ImageProcessorPil|Backend|MistralCommonTokenizer)$",
            name,
        )
    )


def _pipeline_module_classes() -> dict[str, dict[str, type | None]]:
    """Classes defined in `diffusers.pipelines.<module>` that are models or loadable parts, by module."""
    root = Path(diffusers.__file__).parent / "pipelines"
    result: dict[str, dict[str, type | None]] = {}
    for folder in sorted(p for p in root.iterdir() if (p / "__init__.py").is_file()):
        classes = _parse_classes(folder)
        found: dict[str, type | None] = {}
        for name in classes:
            model = _inherits(name, classes, {"ModelMixin", "PreTrainedModel", "CLIPPreTrainedModel"})
            if not model and not _inherits(name, classes, {"ConfigMixin", "SchedulerMixin"}):
                continue
            if name.endswith("Pipeline"):
                continue
            try:
                module = importlib.import_module(classes[name]["module"])
                found[name] = getattr(module, name) if model else None
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:80]}")
        if found:
            result[folder.name] = found
    return result


def _transformers_names_in_diffusers() -> set[str]:
    names: set[str] = set()
    for file in (Path(diffusers.__file__).parent / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                names |= {alias.name for alias in node.names}
    return names


def _parse_classes(folder: Path) -> dict[str, dict[str, Any]]:
    classes: dict[str, dict[str, Any]] = {}
    package = Path(diffusers.__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        if "modeling_flax" in file.name or "modeling_tf" in file.name or file.name.startswith(("convert_", "modular_")):
            continue
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = {
                    "module": module,
                    "bases": [_last(b) for b in node.bases],
                    "values": _assigned(node),
                }
    return classes


def _assigned(node: ast.ClassDef) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in node.body:
        target = (
            item.targets[0]
            if isinstance(item, ast.Assign)
            else item.target
            if isinstance(item, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id in ATTRIBUTES.values():
            try:
                values[target.id] = ast.literal_eval(item.value)
            except (ValueError, TypeError):
                values[target.id] = None
    return values


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _inherits(name: str, classes: dict[str, Any], roots: set[str]) -> bool:
    seen, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current in roots and current != name:
            return True
        if current in classes and current not in seen:
            seen.add(current)
            queue += classes[current]["bases"]
    return False


def _inherited(name: str, attribute: str, classes: dict[str, Any]) -> list[str] | None:
    queue = [name]
    while queue:
        entry = classes.get(queue.pop(0))
        if entry is None:
            continue
        if attribute in entry["values"]:
            value = entry["values"][attribute]
            return sorted(value) if isinstance(value, set) else [value] if isinstance(value, str) else list(value or [])
        queue += entry["bases"]
    return None


if __name__ == "__main__":
    main()
