"""Which of the installed diffusers pipelines guide, found in their source: no pipeline is imported."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import diffusers

_SOURCE = Path(diffusers.__file__).parent / "pipelines"
_GUIDES = re.compile(r"guidance|guider|cfg")
_OTHER_RUNTIMES = ("Onnx", "Flax")


def guided_pipelines() -> dict[str, str]:
    """Folder by class name, of every public pipeline that is not deprecated and whose call guides."""
    return dict(sorted(pair for path in _SOURCE.rglob("pipeline_*.py") for pair in _in_file(path)))


def _in_file(path: Path) -> Iterator[tuple[str, str]]:
    folder = path.relative_to(_SOURCE).parts[0]
    if folder == "deprecated":
        return
    source = path.read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and _is_public(node.name) and _guides(node, source):
            yield node.name, folder


def _is_public(name: str) -> bool:
    return name in dir(diffusers) and not name.startswith(_OTHER_RUNTIMES)


def _guides(node: ast.ClassDef, source: str) -> bool:
    calls = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__call__"]
    return any(_GUIDES.search(ast.get_source_segment(source, call) or "") for call in calls)
