"""A strict check of a whole Serve config: Serve itself lets unknown keys and repeated keys pass without a word."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ValidationError

from deployments.errors import SettingsError
from deployments.exposure import is_loopback
from deployments.settings import AppSettings

IMPORT_PATH = "deployments.app:build_app"
_PLANNED_OPTIONS = (
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
    "ray_actor_options",
    "gang_scheduling_config",
)
"""What the plan decides for the deployment of the groups; an override here would contradict it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a config: `path` is dotted, with numbers for entries of lists."""

    severity: Literal["error", "warning"]
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.message}"


def read_config(path: Path) -> dict[str, Any]:
    """The YAML document of a config file.

    Raises:
        SettingsError: it cannot be read, repeats a key, or is no mapping.
    """
    try:
        document = yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)  # a SafeLoader: makes plain data only
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; give a Serve config or a checkpoint's folder") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: a Serve config is a mapping with `applications`")
    return document


def check_config(document: dict[str, Any]) -> list[Finding]:
    """All that is wrong or doubtful in a Serve config, in the order of the file."""
    from ray.serve.schema import ServeDeploySchema

    findings = list(_unknown_keys(document, ServeDeploySchema, ""))
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        findings += _validation_findings(error, "")
    return [*findings, *_http_findings(document), *_application_findings(document)]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML takes the last of two equal keys; that is a mistake in a config."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _unknown_keys(value: Any, model: type[BaseModel], path: str) -> Iterator[Finding]:
    """Keys that Serve's schema does not know, at every depth that the schema describes."""
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        field = model.model_fields.get(key)
        if field is None:
            yield Finding("error", here, _advise(str(key), list(model.model_fields)))
            continue
        inner = _model_in(field.annotation)
        if inner is None:
            continue
        for index, entry in enumerate(item if isinstance(item, list) else [item]):
            yield from _unknown_keys(entry, inner, f"{here}.{index}" if isinstance(item, list) else here)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in `Model`, `list[Model]`, `Optional[Model]` or `Dict | Model`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner)) is not None), None)


def _http_findings(document: dict[str, Any]) -> Iterator[Finding]:
    """What HTTP lets in: where that would be anybody, the app refuses to start unless its settings say so."""
    http = document.get("http_options")
    host = http.get("host") if isinstance(http, dict) else None
    address, path = host or "all interfaces, since http_options.host is not set", "http_options.host"
    if host is not None and is_loopback(str(host)):
        return
    for _, application in _our_applications(document):
        try:
            settings = AppSettings.model_validate(application.get("args") or {})
        except ValidationError:
            continue
        if settings.has_keys:
            continue
        message = f"listens on {address}: whoever reaches the port can use it"
        if settings.allow_open_port:
            yield Finding("warning", path, message)
        else:
            yield Finding("error", path, f"{message}; say 127.0.0.1, or give api_keys, or set allow_open_port")


def _application_findings(document: dict[str, Any]) -> Iterator[Finding]:
    ours = _our_applications(document)
    if not ours:
        yield Finding("error", "applications", f"none has `import_path: {IMPORT_PATH}`")
    for index, application in ours:
        path = f"applications.{index}"
        try:
            AppSettings.model_validate(application.get("args") or {})
        except ValidationError as error:
            yield from _validation_findings(error, f"{path}.args")
        yield from _override_findings(application.get("deployments"), f"{path}.deployments")


def _our_applications(document: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    applications = document.get("applications")
    entries = applications if isinstance(applications, list) else []
    return [(i, a) for i, a in enumerate(entries) if isinstance(a, dict) and a.get("import_path") == IMPORT_PATH]


def _override_findings(deployments: Any, path: str) -> Iterator[Finding]:
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else []):
        if not isinstance(deployment, dict) or not str(deployment.get("name", "")).startswith("Group"):
            continue
        for option in _PLANNED_OPTIONS:
            if option in deployment:
                message = "the plan decides this for the groups: drop it, and state wishes under args.plan"
                yield Finding("error", f"{path}.{index}.{option}", message)


def _validation_findings(error: ValidationError, path: str) -> Iterator[Finding]:
    for item in error.errors(include_url=False, include_input=False):
        parts = [path, *map(str, item["loc"])] if path else [str(part) for part in item["loc"]]
        yield Finding("error", ".".join(parts), item["msg"].removeprefix("Value error, "))


def _advise(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; the keys are {', '.join(known)}"
