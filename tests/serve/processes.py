"""Commands as a person starts them, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_MARK = "HELIOGRAPH_TEST_MARK"


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
    """Polls a condition; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.05)


@dataclass
class Command:
    """A command in a session of its own; every process that comes of it carries a mark in its environment."""

    arguments: list[str]
    folder: Path
    executable: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stdout_file, self.stderr_file = self.folder / "stdout", self.folder / "stderr"
        environment = os.environ | {_MARK: self.mark, "TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT)}
        environment |= self.environment
        environment["XDG_STATE_HOME"] = str(self.folder / "state")  # jobs of a test are nobody else's
        with self.stdout_file.open("wb") as stdout, self.stderr_file.open("wb") as stderr:
            self.process = subprocess.Popen(
                [self.executable, *self.arguments],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip

    @property
    def stdout(self) -> str:
        return self.stdout_file.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()

    def wait(self, *, timeout_s: float = 90.0) -> int:
        """Its exit status; when it hangs, the end of its log is the failure."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hung; its last words:\n{self.stderr[-3000:]}") from None

    def wait_for_line(self, text: str, *, timeout_s: float = 90.0) -> None:
        """Waits until it says something on standard error; fails at once when it ends before."""

        def has_said() -> bool:
            said = text in self.stderr
            assert said or self.process.poll() is None, f"died before {text!r}:\n{self.stderr[-3000:]}"
            return said

        wait_until(has_said, f"{text!r} in {self.stderr[-1000:]}", timeout_s=timeout_s)

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to the foreground process group, as a terminal sends it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def left_over(self) -> list[psutil.Process]:
        """Processes that came of the command and live."""
        return [process for process in psutil.process_iter() if _has_mark(process, self.mark)]

    def check_nothing_left(self) -> None:
        """Fails when a process or a Ray folder of the command is still there."""
        wait_until(lambda: not self.left_over(), f"processes gone, left: {self.left_over()}", timeout_s=15)
        assert not list(self.folder.glob("heliograph-*")), "a Ray folder is left"

    def kill_all(self) -> None:
        """Last resort of a failed test: ends what the command started, and only that."""
        for process in self.left_over():
            process.kill()


def heliograph(*arguments: str | Path, folder: Path) -> Command:
    """The command line as a process."""
    return Command(["-m", "deployments.cli", *map(str, arguments)], folder)


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False
