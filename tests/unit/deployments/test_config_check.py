"""The strict check of Serve configs: what Serve lets pass is found, and the examples are clean."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from deployments.config_check import check_config, read_config
from deployments.errors import SettingsError

EXAMPLES = [
    file
    for file in sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
    if "applications" in next(yaml.safe_load_all(file.read_text()))
]
GOOD: dict[str, Any] = {
    "http_options": {"host": "127.0.0.1", "port": 8000},
    "applications": [
        {
            "name": "heliograph",
            "import_path": "deployments.app:build_app",
            "route_prefix": "/",
            "args": {"checkpoint": "checkpoints/shapes", "plan": {"device": "cpu"}},
        }
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    target: Any = document
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("aplications", [], "did you mean 'applications'"),
        ("http_options.hots", "127.0.0.1", "did you mean 'host'"),
        ("http_options.port", "many", "valid integer"),
        ("applications.0.import_paths", "x", "did you mean 'import_path'"),
        ("applications.0.args.checkpont", "x", "did you mean 'checkpoint'"),
        ("applications.0.args.plan.cfg_degre", 2, "did you mean 'cfg_degree'"),
        ("applications.0.args.num_replicas", 0, "greater than or equal to 1"),
        ("applications.0.deployments", [{"name": "Group", "nun_replicas": 2}], "did you mean 'num_replicas'"),
        (
            "applications.0.deployments",
            [{"name": "Group", "placement_group_bundles": [{"CPU": 1}]}],
            "the plan decides",
        ),
        ("applications.0.import_path", "elsewhere:app", "none has"),
        ("applications", [], "none has"),
    ],
)
def test_mistake_is_found_and_named(path: str, value: Any, word: str) -> None:
    findings = check_config(changed(path, value))
    assert any(finding.severity == "error" and word in finding.message for finding in findings), findings


def test_good_config_has_no_finding() -> None:
    assert check_config(GOOD) == []


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
@pytest.mark.parametrize(
    ("more", "severities"),
    [
        ({}, ["error"]),
        ({"allow_open_port": True}, ["warning"]),
        ({"api_keys": [{"name": "alice", "sha256": "0" * 64}]}, []),
    ],
)
def test_open_interface_needs_a_key_or_somebody_who_means_it(
    host: str | None, more: dict[str, Any], severities: list[str]
) -> None:
    document = changed("http_options", {"port": 8000} if host is None else {"host": host})
    document["applications"][0]["args"].update(more)
    assert [finding.severity for finding in check_config(document)] == severities


def test_repeated_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("http_options: {host: 127.0.0.1}\nhttp_options: {host: 0.0.0.0}\n")
    with pytest.raises(SettingsError, match="'http_options' is there twice"):
        read_config(file)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_examples_are_clean(file: Path) -> None:
    assert check_config(read_config(file)) == []


def test_command_exits_2_and_prints_every_finding_as_json(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(changed("http_options.hots", "x")))
    result = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)[0]["path"] == "http_options.hots"
    file.write_text(yaml.safe_dump(GOOD))
    result = CliRunner().invoke(app, ["check", str(file)])
    assert (result.exit_code, result.stdout.strip()) == (0, f"{file}: ok")
