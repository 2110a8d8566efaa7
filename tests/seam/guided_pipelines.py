"""Which of the installed diffusers pipelines guide, found in their source: no pipeline is imported."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import diffusers

_SOURCE = Path(diffusers.__file__).parent / "pipelines"
_CLASS = re.compile(r"^class (?=\w)", re.MULTILINE)
_CALL = re.compile(r"^    def __call__\(.*?(?=^    [def@]|\Z)", re.MULTILINE | re.DOTALL)
_GUIDES = re.compile(r"guidance|guider|cfg")
_OTHER_RUNTIMES = ("Onnx", "Flax")


@functools.cache
def guided_pipelines() -> tuple[str, ...]:
    """Class name of every public pipeline that is not deprecated and whose call guides, in order."""
    public = {name for name in dir(diffusers) if not name.startswith(_OTHER_RUNTIMES)}
    return tuple(sorted(public & {name for path in _SOURCE.rglob("pipeline_*.py") for name in _in_file(path)}))


def _in_file(path: Path) -> Iterator[str]:
    if path.relative_to(_SOURCE).parts[0] == "deprecated":
        return
    for class_source in _CLASS.split(path.read_text())[1:]:
        call = _CALL.search(class_source)
        if call is not None and _GUIDES.search(call[0]):
            yield class_source[: re.search(r"\W", class_source).start()]
