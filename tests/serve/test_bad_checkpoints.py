"""Checkpoints that cannot be served: a typed error that says why, from every entrance, and the running app unharmed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.app import build_app
from deployments.cli import app as command_line
from deployments.settings import AppSettings
from planner.errors import CheckpointError
from tests.serve.conftest import SHAPES

QUICK = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 1}


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def cut_weights(folder: Path) -> None:
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])


def name_unknown_class(folder: Path) -> None:
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["transformer"] = ["diffusers", "NobodysTransformer3DModel"]
    index.write_text(json.dumps(content))


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing folder": (remove_folder, "broken"),
    "no model_index.json": (remove_index, "model_index.json"),
    "truncated weights": (cut_weights, "diffusion_pytorch_model.safetensors"),
    "unknown class": (name_unknown_class, "NobodysTransformer3DModel"),
}


@pytest.fixture(params=BREAKAGES.values(), ids=BREAKAGES)
def broken(request, tmp_path):
    """A copy of the shapes checkpoint with one thing wrong, and the word that an error about it must say."""
    break_it, word = request.param
    folder = tmp_path / "broken"
    shutil.copytree(SHAPES, folder)
    break_it(folder)
    return folder, word


@pytest.mark.parametrize(
    "arguments",
    [("plan", "--gpus", "0"), ("generate", "--device", "cpu", "--prompt", "a", "--output", "a.png")],
    ids=lambda arguments: arguments[0],
)
def test_command_line_says_what_is_wrong_and_starts_nothing(broken, arguments):
    folder, word = broken
    name, *options = arguments
    result = CliRunner().invoke(command_line, [name, str(folder), *options])
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_app_builder_refuses_and_the_running_app_goes_on(app, http, broken):
    folder, word = broken
    with pytest.raises(CheckpointError, match=word):
        build_app(AppSettings.model_validate({"checkpoint": str(folder), "plan": {"device": "cpu"}}))
    assert http.post("/v1/images/generations", json=QUICK).status_code == 200


@pytest.mark.full
def test_serve_refuses_truncated_weights_and_leaves_nothing(run_heliograph, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(SHAPES, folder)
    cut_weights(folder)
    command = run_heliograph("serve", folder, "--port", "0")
    assert command.wait() == 2, command.stderr
    assert "diffusion_pytorch_model.safetensors" in command.stderr
    command.check_nothing_left()
