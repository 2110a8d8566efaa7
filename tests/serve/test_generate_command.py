"""`heliograph generate` as a process: its files, its JSON, and nothing left of it."""

import base64
import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from tests.serve.conftest import SHAPES

PROMPT = "a red circle on a white background"


def test_one_rank_makes_the_same_bytes_as_two_ranks_behind_http(app, run_heliograph, tmp_path):
    path = tmp_path / "one.png"
    command = run_heliograph(
        "generate", SHAPES, "--prompt", PROMPT, "--seed", "11", "--ranks", "1", "--device", "cpu", "--output", path,
        "--json",
    )  # fmt: skip
    assert command.wait() == 0, command.stderr
    report = json.loads(command.stdout)
    assert report["seed"] == 11
    assert list(report["seconds"]) == ["plan", "start", "encode", "denoise", "decode", "save"]
    assert [rank["world_rank"] for rank in report["ranks"]] == [0]
    assert report["ranks"][0]["denoiser_calls"] == 40  # 20 steps, two branches
    answer = app.client().images.generate(prompt=PROMPT, extra_body={"seed": 11})
    assert path.read_bytes() == base64.b64decode(answer.data[0].b64_json)
    command.check_nothing_left()


def test_two_ranks_share_the_calls_and_latents_are_saved_as_safetensors(run_heliograph, tmp_path):
    path = tmp_path / "latents.safetensors"
    command = run_heliograph(
        "generate", SHAPES, "--prompt", PROMPT, "--seed", "1", "--steps", "4", "--cfg-degree", "2", "--device", "cpu",
        "--output", path, "--json",
    )  # fmt: skip
    assert command.wait() == 0, command.stderr
    ranks = json.loads(command.stdout)["ranks"]
    assert sum(rank["denoiser_calls"] for rank in ranks) == 8
    assert all(rank["denoiser_calls"] > 0 and rank["weight_bytes_read"] > 0 for rank in ranks)
    assert load_file(path)["latents"].shape[0] == 1
    command.check_nothing_left()


@pytest.mark.full
@pytest.mark.parametrize("moment", ["start 1 ranks", "in place", "denoise"])
def test_interrupt_stops_everything(run_heliograph, tmp_path, moment):
    command = run_heliograph(
        "generate", SHAPES, "--prompt", PROMPT, "--steps", "5000", "--ranks", "1", "--device", "cpu",
        "--output", tmp_path / "never.png",
    )  # fmt: skip
    command.wait_for_line(moment)
    command.interrupt()
    assert command.wait(timeout_s=30) == 130, command.stderr
    command.check_nothing_left()
    assert not (tmp_path / "never.png").exists()


@pytest.mark.full
def test_crash_in_group_start_leaves_nothing(run_heliograph, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(SHAPES, broken)
    weights = next((broken / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["nobody.knows.me"] = tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights)
    command = run_heliograph(
        "generate", broken, "--prompt", PROMPT, "--cfg-degree", "2", "--device", "cpu", "--output", tmp_path / "a.png"
    )
    assert command.wait() == 1, command.stderr
    assert "did not start" in command.stderr
    command.check_nothing_left()


@pytest.mark.full
def test_what_the_pipeline_cannot_do_is_bad_input(run_heliograph, tmp_path):
    command = run_heliograph(
        "generate", SHAPES, "--prompt", PROMPT, "--size", "63x64", "--ranks", "1", "--device", "cpu",
        "--output", tmp_path / "a.png", "--json",
    )  # fmt: skip
    assert command.wait() == 2, command.stderr
    assert "multiples of" in command.stderr
    assert command.stdout == ""
    command.check_nothing_left()
