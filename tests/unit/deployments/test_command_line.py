import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.commands import planning
from deployments.commands.foreground import ServeConfig
from deployments.errors import SettingsError

ROOT = Path(__file__).parents[3]
SHAPES = str(ROOT / "checkpoints" / "shapes")


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_plan_as_json_is_the_plan_alone():
    result = invoke("plan", SHAPES, "--gpus", 0, "--cfg-degree", 2, "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["feasible"] is True
    assert plan["group"]["num_ranks"] == 2
    assert result.stderr == ""


def test_fields_that_others_rely_on():
    plan = json.loads(invoke("plan", SHAPES, "--gpus", 2, "--gpu-type", "H100", "--json").stdout)
    components = plan["components"]
    names = "name class_name payload_bytes num_parameters num_blocks residency num_resident_blocks prefetch_depth ranks"
    for component in components:
        assert {*names.split(), "load_order", "reason"} <= set(component)
        assert all(isinstance(rank, int) for rank in component["ranks"])
    assert [component["load_order"] for component in components] == list(range(len(components)))
    assert plan["payload_bytes"] == sum(component["payload_bytes"] for component in components)
    group = {"num_ranks", "cfg_degree", "sequence_degree", "fsdp_degree", "bundles", "strategy"}
    assert group <= set(plan["group"])
    memory = {"gpu_peak_bytes", "gpu_capacity_bytes", "host_peak_bytes", "timeline"}
    assert memory <= set(plan["memory"])
    assert len(plan["memory"]["gpu_peak_bytes"]) == plan["group"]["num_ranks"]
    assert {"load_s", "step_s", "request_s"} <= set(plan["predicted"])
    assert all({"option", "reason"} <= set(entry) for entry in plan["rejected"])
    assert len(plan["fingerprint"]) == 64


def test_kernel_and_compilation_can_be_stated():
    stated = ["--attention-backend", "flash", "--compile", "blocks"]
    plan = json.loads(invoke("plan", SHAPES, "--gpus", 0, *stated, "--json").stdout)
    assert (plan["attention_backends"], plan["compile"]) == (["flash"], "blocks")
    assert invoke("plan", SHAPES, "--gpus", 0, "--attention-backend", "fastest").exit_code != 0
    assert invoke("plan", SHAPES, "--gpus", 0, "--compile", "all").exit_code != 0


def test_plan_as_tables_names_every_component():
    result = invoke("plan", SHAPES, "--gpus", 0)
    assert result.exit_code == 0
    assert "WanPipeline" in result.stdout
    assert "resident" in result.stdout


def test_infeasible_plan_prints_its_report_and_exits_3():
    arguments = ["plan", SHAPES, "--gpus", 1, "--gpu-memory-gib", 0.001, "--mode", "speed"]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert report["feasible"] is False
    assert report["rejected"]
    assert "no plan fits" in result.stderr
    assert invoke(*arguments).exit_code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "no/such/folder"],
        ["plan", str(ROOT / "deployments")],
        ["plan", SHAPES, "--cfg-degree", 0],
        ["plan", SHAPES, "--cfg-degree", "two"],
        ["plan", SHAPES, "--mode", "fast"],
        ["plan", SHAPES, "--size", "big"],
        ["plan", SHAPES, "--size", "0x64"],
        ["plan", SHAPES, "--residency", "transformer"],
        ["plan", SHAPES, "--residency", "transformer=nowhere"],
        ["plan", SHAPES, "--residency", "transformer=offload:3"],
        ["plan", SHAPES, "--residency", "transformer=sharded:3"],
        ["plan", SHAPES, "--residency", "vae=offload", "--residency", "vae=resident"],
        ["plan", SHAPES, "--residency", "nobody=offload"],
        ["plan", SHAPES, "--forbid", "transformer=nowhere"],
        ["plan", SHAPES, "--cluster", "no/such/file.yaml"],
        ["plan", SHAPES, "--unknown"],
        ["generate", SHAPES, "--prompt", "", "--output", "a.png"],
        ["generate", SHAPES, "--prompt", "a", "--output", "a.gif"],
        ["generate", SHAPES, "--prompt", "a", "--output", "no/such/folder/a.png"],
        ["generate", SHAPES, "--prompt", "a", "--output", "a.png", "--num-frames", 5],
        ["generate", SHAPES, "--prompt", "a", "--output", "a.png", "--steps", 0],
        ["generate", SHAPES, "--prompt", "a", "--output", "a.png", "--seed", -1],
        ["generate", SHAPES, "--prompt", "a", "--output", "a.png", "--guidance-scale", "nan"],
        ["generate", SHAPES, "--prompt", "a"],
        ["generate", "no/such/folder", "--prompt", "a", "--output", "a.png", "--json"],
        ["serve", "no/such/file.yaml"],
        ["serve", str(ROOT / "pyproject.toml")],
        [],
    ],
)
def test_bad_input_exits_2_with_a_message_and_nothing_on_standard_output(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr or not arguments
    assert "Traceback" not in result.output
    assert not arguments or result.stdout == ""


@pytest.mark.parametrize("command", ["plan", "generate", "serve"])
def test_help_teaches_with_an_example(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"heliograph {command}" in result.stdout


def test_unexpected_error_exits_1(monkeypatch):
    def explode(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(planning, "make_plan", explode)
    result = invoke("plan", SHAPES)
    assert result.exit_code == 1
    assert "boom" in result.stderr


def test_interrupt_exits_130(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "make_plan", interrupt)
    assert invoke("plan", SHAPES).exit_code == 130


def test_plan_loads_neither_torch_nor_ray_and_is_quick():
    script = (
        "import sys, time; from deployments.cli import main\n"
        f"sys.argv = ['heliograph', 'plan', {SHAPES!r}, '--gpus', '0', '--json']\n"
        "try: main()\n"
        "finally: print(time.process_time(), *({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)), "
        "file=sys.stderr)"
    )
    seconds = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=True, env=environment,
        )  # fmt: skip
        cpu_s, *heavy = done.stderr.split()
        assert heavy == []
        seconds.append(float(cpu_s))  # of CPU: other work on the machine is not ours
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def test_serve_config_is_the_one_for_serve_deploy():
    config = ServeConfig.read(ROOT / "examples" / "shapes.yaml", host=None, port=None)
    assert (config.host, config.port, config.settings.plan.cfg_degree) == ("127.0.0.1", 8000, 2)
    assert ServeConfig.read(ROOT / "examples" / "shapes.yaml", host=None, port=1234).port == 1234


@pytest.mark.parametrize(
    "checkpoint", ["s3://bucket/shapes", "hf://owner/shapes@main", str(ROOT / "checkpoints/shapes")]
)
def test_a_checkpoint_is_served_with_default_settings(checkpoint: str) -> None:
    (model,) = ServeConfig.read(checkpoint, host=None, port=None).settings.served_models
    assert model.checkpoint_location == checkpoint


def test_serve_config_with_a_wrong_key_names_it(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("applications: [{import_path: 'deployments.app:build_app', args: {chekpoint: a}}]")
    with pytest.raises(SettingsError, match="did you mean 'checkpoint'"):
        ServeConfig.read(file, host=None, port=None)
