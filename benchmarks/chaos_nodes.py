"""Loss of a node: further raylets on this machine are nodes of their own, and one of them is killed with all on it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from ray import serve

from benchmarks.chaos_processes import COORDINATOR, is_gone, pids_of, wait_until
from benchmarks.chaos_rounds import Facts, Result, under_load
from benchmarks.chaos_site import HOST, Site, deploy, make_settings, site_at
from deployments.local_ray import local_ray
from deployments.local_serve import find_port

_HEAD_CPUS = 1  # too few for a group, so that groups are on the other nodes
_NODE_CPUS = 3  # for one group
_NUM_NODES = 2
_START_TIMEOUT_S = 90.0


class Nodes:
    """Worker nodes as processes of this one."""

    def __init__(self) -> None:
        self._commands: list[subprocess.Popen[bytes]] = []

    def add(self) -> None:
        """Starts a node and waits until Ray counts it."""
        before = _num_alive()
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats",
            "--address", ray.get_runtime_context().gcs_address, "--num-cpus", str(_NODE_CPUS), "--num-gpus", "0",
            "--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", str(10**8),
        ]  # fmt: skip
        environment = os.environ | {"RAY_AUTH_MODE": "token"}
        self._commands.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        wait_until(lambda: _num_alive() > before, "one more node", timeout_s=_START_TIMEOUT_S)

    def kill_one_with(self, pid: int) -> None:
        """Kills the node that a process is on, and everything else on it."""
        for command in self._commands:
            on_it = _tree_of(command.pid)
            if pid in (process.pid for process in on_it):
                _kill(on_it)
                command.wait()
                self._commands.remove(command)
                return
        raise LookupError(f"process {pid} is on none of the nodes")

    def close(self) -> None:
        """Ends all nodes."""
        for command in self._commands:
            _kill(_tree_of(command.pid))
            command.wait()


@contextmanager
def site_of_nodes(folder: Path) -> Iterator[Site]:
    """A service whose head has no room for a group, and two nodes that have room for one each."""
    with local_ray(num_cpus=_HEAD_CPUS, num_gpus=0), contextlib.closing(Nodes()) as nodes:
        for _ in range(_NUM_NODES):
            nodes.add()
        settings = make_settings(folder)
        port, begin = find_port(HOST, 0), time.monotonic()
        serve.start(http_options={"host": HOST, "port": port, "location": "HeadOnly"})
        deploy(settings)
        with site_at(port, settings, begin, extra=nodes) as site:
            yield site
        serve.shutdown()


def lose_node(site: Site) -> Result:
    """The node with the group is killed while it works; the group starts on the other one; a new node comes.

    Facts: `noticed_s`, until Ray knew that the node was gone.
    """

    def harm() -> Facts:
        (coordinator,) = pids_of(COORDINATOR)
        num_nodes = _num_alive()
        site.extra.kill_one_with(coordinator)
        assert is_gone(coordinator)
        return {"noticed_s": wait_until(lambda: _num_alive() < num_nodes, "the node's end", timeout_s=120)}

    result = under_load(site, harm, num_requests=40)
    site.extra.add()
    return result


def _num_alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _tree_of(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(on_it: list[psutil.Process]) -> None:
    for process in on_it:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
