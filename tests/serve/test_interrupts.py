"""Ctrl-C and kills where they hurt: during `make demo`, during a test run, and while a group starts."""

import os
import shutil
import signal
import sys

import psutil
import pytest

from tests.serve.conftest import SHAPES
from tests.serve.processes import Command, wait_until

TEST_ON_THE_APP = "tests/serve/test_http.py::test_models_live_health_and_plan"


@pytest.fixture
def start(tmp_path):
    """Starts a command; whatever a failed test leaves of it is ended."""
    commands = []

    def start(*arguments, executable=sys.executable):
        commands.append(Command(list(arguments), tmp_path / f"run{len(commands)}", executable=executable))
        return commands[-1]

    yield start
    for command in commands:
        command.kill_all()


def ranks_of(command):
    return [process for process in command.left_over() if "ray::RankActor" in " ".join(command_line(process))]


def command_line(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.full
def test_interrupting_make_demo_leaves_nothing(start, tmp_path):
    command = start("demo", executable=shutil.which("make"))
    wait_until(lambda: "starting" in command.stderr + command.stdout, "the demo starts", timeout_s=60)
    command.interrupt()
    assert command.wait(timeout_s=40) != 0
    command.check_nothing_left()


@pytest.mark.full
def test_interrupting_a_test_run_leaves_nothing(start):
    """As `make test` runs it; once with ranks up, where the most is there to be stopped."""
    command = start("-m", "pytest", "-q", "-p", "no:cacheprovider", TEST_ON_THE_APP)
    wait_until(lambda: ranks_of(command) or command.process.poll() is not None, "ranks are up", timeout_s=90)
    assert command.process.poll() is None, command.stdout[-3000:]
    command.interrupt()
    assert command.wait(timeout_s=60) == pytest.ExitCode.INTERRUPTED, command.stdout[-3000:]
    command.check_nothing_left()


@pytest.mark.full
@pytest.mark.parametrize("victim", ["rank", "command"])
def test_kill_while_a_group_starts_leaves_no_process(start, tmp_path, victim):
    command = start(
        "-m", "deployments.cli", "generate", str(SHAPES), "--prompt", "a", "--cfg-degree", "2", "--device", "cpu",
        "--output", str(tmp_path / "never.png"),
    )  # fmt: skip
    wait_until(lambda: ranks_of(command) or command.process.poll() is not None, "ranks start", timeout_s=60)
    process = ranks_of(command)[0] if victim == "rank" else psutil.Process(command.process.pid)
    os.kill(process.pid, signal.SIGKILL)
    status = command.wait(timeout_s=60)
    if victim == "rank":
        assert status == 1
        assert "did not start" in command.stderr
        command.check_nothing_left()
    else:  # its folder stays: nobody is left to remove it; a worker that just starts looks for Ray for a minute
        wait_until(lambda: not command.left_over(), f"processes gone, left: {command.left_over()}", timeout_s=90)
