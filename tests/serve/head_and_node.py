"""A Ray of two nodes on this machine, of which the head can be killed and started again, as its machine may be."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    "--block", "--disable-usage-stats", "--num-gpus", "0", "--min-worker-port", "0", "--max-worker-port", "0",
    "--object-store-memory", str(10**8),
]  # fmt: skip


@dataclass
class HeadAndNode:
    """Two nodes. The head has no CPUs to give, so that groups are on the other one."""

    folder: Path
    redis: PrivateRedis
    port: int = field(default_factory=lambda: find_port(HOST, 0))
    dashboard_port: int = field(default_factory=lambda: find_port(HOST, 0))

    @property
    def dashboard(self) -> str:
        """For `serve deploy --address`."""
        return f"http://{HOST}:{self.dashboard_port}"

    def start_head(self) -> None:
        """Starts the head, and waits until it says that it runs."""
        # Ray takes this file and the other node's processes, which are on this machine, for a head that still runs.
        (self.folder / "r" / "ray_current_cluster").unlink(missing_ok=True)
        self._head = self._start(
            "--head", "--port", str(self.port), "--temp-dir", str(self.folder / "r"), "--num-cpus", "0",
            "--redis-password", self.redis.password, "--dashboard-host", HOST,
            "--dashboard-port", str(self.dashboard_port),
        )  # fmt: skip

    def start_node(self, *, num_cpus: int) -> None:
        """Starts the other node."""
        own = ["--node-ip-address", ray.util.get_node_ip_address(), "--num-cpus", str(num_cpus)]
        self._node = self._start("--address", f"{HOST}:{self.port}", *own)

    def kill_head(self) -> None:
        """SIGKILL to every process of the head: the controller, the proxy, the ingress, GCS."""
        _kill(self._head)

    def pids_on_node(self, start: str) -> list[int]:
        """Processes of the other node whose command line begins so."""
        found = []
        for process in psutil.Process(self._node.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(start):
                    found.append(process.pid)
        return sorted(found)

    def close(self) -> None:
        """Ends both."""
        for command in (getattr(self, "_head", None), getattr(self, "_node", None)):
            if command is not None:
                _kill(command)

    def _start(self, *arguments: str) -> Command:
        folder = self.folder / f"command{len(list(self.folder.iterdir()))}"
        environment = WITH_TOKEN | {"RAY_REDIS_ADDRESS": self.redis.address}
        command = Command(["start", *_COMMON, *arguments], folder, _RAY, environment)

        def is_up() -> bool:
            assert command.process.poll() is None, command.stdout[-3000:] + command.stderr[-3000:]
            return "Ray runtime started" in command.stdout

        wait_until(is_up, "a node's start", timeout_s=_START_TIMEOUT_S)
        return command


@contextmanager
def head_and_node(folder: Path, redis: PrivateRedis, *, num_cpus: int) -> Iterator[HeadAndNode]:
    """Both nodes; nothing of them is left afterwards. `folder` must have a short path."""
    nodes = HeadAndNode(folder, redis)
    with contextlib.closing(nodes):
        nodes.start_head()
        nodes.start_node(num_cpus=num_cpus)
        yield nodes


def _kill(command: Command) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(command.process.pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    command.process.wait()
