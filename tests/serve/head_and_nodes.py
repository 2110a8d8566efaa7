"""A Ray of several nodes on this machine, of which the head can be killed and started again, as its machine may be."""

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray

from deployments.local_serve import find_port
from tests.serve.processes import Command, wait_until
from tests.tools.private_redis import PrivateRedis

HOST = "127.0.0.1"
WITH_TOKEN = {"RAY_AUTH_MODE": "token"}
_RAY = str(Path(sys.executable).parent / "ray")
_START_TIMEOUT_S = 90.0
_COMMON = [
    "--block", "--disable-usage-stats", "--min-worker-port", "0", "--max-worker-port", "0",
    "--object-store-memory", str(10**8),
]  # fmt: skip


@dataclass
class HeadAndNodes:
    """A head that has nothing to give, so that groups are on the other nodes.

    Attributes:
        folder: of the commands' output and Ray's files; its path must be short.
        redis: keeps the head's state; without it that is gone with the head.
    """

    folder: Path
    redis: PrivateRedis | None = None
    port: int = field(default_factory=lambda: find_port(HOST, 0))
    dashboard_port: int = field(default_factory=lambda: find_port(HOST, 0))
    _commands: list[Command] = field(default_factory=list)

    @property
    def dashboard(self) -> str:
        """For `serve deploy --address`."""
        return f"http://{HOST}:{self.dashboard_port}"

    def start_head(self) -> Command:
        """Starts the head, and waits until it says that it runs."""
        # Ray takes this file and the other nodes' processes, which are on this machine, for a head that still runs.
        (self.folder / "r" / "ray_current_cluster").unlink(missing_ok=True)
        password = ["--redis-password", self.redis.password] if self.redis else []
        return self._start(
            "--head", "--port", str(self.port), "--temp-dir", str(self.folder / "r"), *password,
            "--num-cpus", "0", "--num-gpus", "0",
            "--dashboard-host", HOST, "--dashboard-port", str(self.dashboard_port),
        )  # fmt: skip

    def start_node(self, *, num_cpus: int, num_gpus: int = 0, labels: Mapping[str, str] | None = None) -> Command:
        """Starts another node; its GPUs are only counted."""
        given = ["--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)]
        given += ["--labels", ",".join(f"{name}={value}" for name, value in labels.items())] if labels else []
        own_address = ["--node-ip-address", ray.util.get_node_ip_address()]
        return self._start("--address", f"{HOST}:{self.port}", *own_address, *given)

    def close(self) -> None:
        """Ends all of them."""
        for command in self._commands:
            kill_node(command)

    def _start(self, *arguments: str) -> Command:
        environment = WITH_TOKEN | ({"RAY_REDIS_ADDRESS": self.redis.address} if self.redis else {})
        folder = self.folder / f"node{len(self._commands)}"
        command = Command(["start", *_COMMON, *arguments], folder, _RAY, environment)
        self._commands.append(command)

        def is_up() -> bool:
            assert command.process.poll() is None, command.stdout[-3000:] + command.stderr[-3000:]
            return "Ray runtime started" in command.stdout

        wait_until(is_up, "a node's start", timeout_s=_START_TIMEOUT_S)
        return command


def pids_on(node: Command, start: str) -> list[int]:
    """Processes of a node whose command line begins so."""
    found = []
    for process in psutil.Process(node.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(start):
                found.append(process.pid)
    return sorted(found)


def kill_node(node: Command) -> None:
    """SIGKILL to every process of a node; of the head that is GCS, and all that Serve keeps there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(node.process.pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    node.process.wait()
