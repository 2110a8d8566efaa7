"""Groups and nodes that come with waiting work and go without it, by Ray's own autoscaler on nodes of this machine.

    python -m benchmarks.autoscaling_on_nodes [--jobs N] [--max-nodes N]

Ray's fake provider starts each node as a raylet here; a node has room for one group of two ranks. From no node and no
group, picture jobs come in; every half a second the nodes, groups and unfinished jobs are counted, until all is gone
again. Nothing of it outlives this process, and no other Ray on this machine is touched.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from ray import serve

from benchmarks.chaos_processes import is_gone, wait_until
from benchmarks.chaos_site import HOST, deploy, make_settings
from benchmarks.record import keep
from deployments.interrupts import raise_on_termination
from deployments.local_serve import APP_NAME, find_port

_SCALING = {
    "min_replicas": 0,
    "target_gpu_seconds": 5.0,
    "up_delay_s": 1.0,
    "down_delay_s": 5.0,
    "to_zero_delay_s": 10.0,
}
# What Ray's autoscaler expects to be there, and a node that is a process here has no use for.
_EMPTY_LISTS = (
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
    "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
_IDLE_MINUTES = 0.25
_NODE = {"CPU": 3, "memory": 4 * 2**30}
_NUM_STEPS = 60
_ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0",
}  # fmt: skip
_START_TIMEOUT_S = 120.0
_TIMEOUT_S = 900.0
_END_TIMEOUT_S = 20.0
_MAX_LOG_CHARACTERS = 2000
_MARK = "HELIOGRAPH_AUTOSCALING_RUN"  # in the environment of everything that a run starts
_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the cluster: seconds since the first job, and what there was."""

    at_s: float
    num_nodes: int
    num_groups: int
    num_unfinished: int


def cluster_document(address: str, *, max_nodes: int) -> dict[str, Any]:
    """A file for Ray's autoscaler: a head without room for a group, and nodes for one each, which join at `address`."""
    return {
        "cluster_name": "fake_multinode",
        "max_workers": max_nodes,
        "provider": {
            "type": "external",
            "module": "benchmarks.fake_nodes.FakeNodes",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        **{name: [] for name in _EMPTY_LISTS},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "upscaling_speed": 10.0,
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1, "memory": 2**30}, "node_config": {}, "max_workers": 0},
            "group": {
                "resources": _NODE,
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
    }


@contextmanager
def autoscaled_ray(folder: Path, file: Path, *, port: int) -> Iterator[None]:
    """A head with an autoscaler, in a process tree that is killed at the end."""
    environment = os.environ | {"RAY_TMPDIR": str(folder)}
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(port),
        "--autoscaling-config", str(file), "--num-cpus", "1", "--num-gpus", "0", "--include-dashboard", "false",
        "--temp-dir", str(folder), "--object-store-memory", str(10**8),
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        connect(port, head, log)
        raise_on_termination()
        yield
    finally:
        ray.shutdown()
        _kill_tree(head.pid)
        head.wait()


def measure(url: str, *, num_jobs: int) -> tuple[list[Sample], list[str]]:
    """Hands in the jobs, and looks until no node is left; the samples, and how each job ended."""
    begin = time.monotonic()
    with httpx.Client(base_url=url, timeout=60) as client:
        jobs = {_submit(client, seed): "queued" for seed in range(num_jobs)}
        samples: list[Sample] = []
        while time.monotonic() - begin < _TIMEOUT_S:
            for job in [job for job, state in jobs.items() if state not in ("completed", "failed")][:8]:
                jobs[job] = client.get(f"/v1/images/jobs/{job}").json()["status"]
            num_unfinished = sum(state not in ("completed", "failed") for state in jobs.values())
            samples.append(Sample(time.monotonic() - begin, _num_nodes(), _num_groups(), num_unfinished))
            if num_unfinished == 0 and samples[-1].num_nodes == 0:
                break
            time.sleep(_PERIOD_S)
    return samples, list(jobs.values())


def summarize(samples: list[Sample], states: list[str]) -> dict[str, Any]:
    """One row: the most that there were, and when."""
    most_nodes, most_groups = max(s.num_nodes for s in samples), max(s.num_groups for s in samples)
    done = [s.at_s for s in samples if s.num_unfinished == 0]
    return {
        "jobs": len(states),
        "completed": states.count("completed"),
        "most_nodes": most_nodes,
        "most_groups": most_groups,
        "first_group_s": _first(samples, lambda s: s.num_groups > 0),
        "most_groups_s": _first(samples, lambda s: s.num_groups == most_groups),
        "all_done_s": round(done[0], 1) if done else None,
        "no_group_s": _first(samples, lambda s: s.num_unfinished == 0 and s.num_groups == 0),
        "no_node_s": _first(samples, lambda s: s.num_unfinished == 0 and s.num_nodes == 0),
    }


def main() -> int:
    """Runs it once and keeps the row; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--max-nodes", type=int, default=3)
    options = parser.parse_args()
    mark = os.environ[_MARK] = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="hg", dir="/tmp") as name:  # short: sockets lie in it
        folder = Path(name)
        samples, states = _run(folder, num_jobs=options.jobs, max_nodes=options.max_nodes)
        left = end_what_is_left(mark)
    for sample in samples[:: max(len(samples) // 40, 1)]:
        print(sample)
    row = {**summarize(samples, states), "processes_left": len(left)}
    keep("autoscaling_on_nodes", [row])
    problems = [f"left at the end: {line}" for line in left] + find_problems(row)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def find_problems(row: dict[str, Any]) -> list[str]:
    """What a row of `summarize` says that should not be."""
    problems = []
    if row["completed"] != row["jobs"]:
        problems.append(f"{row['jobs'] - row['completed']} of {row['jobs']} jobs were not made")
    problems += [f"in {_TIMEOUT_S:g} s not: {name}" for name in ("no_group_s", "no_node_s") if row[name] is None]
    return problems


def connect(port: int, head: "subprocess.Popen[bytes]", log: Path, *, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Connects to the head as soon as it is up.

    Raises:
        RuntimeError: the head ended, or was not up in time; says the last reason, and what the head wrote.
    """
    reason = "nothing was tried"

    def connects() -> bool:
        nonlocal reason
        if head.poll() is not None:
            raise RuntimeError(f"the head node ended with status {head.returncode}: {_tail(log)}")
        try:
            ray.init(address=f"{HOST}:{port}", log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises anything here; most often the head is not up yet
            reason = f"{type(error).__name__}: {error}"
            ray.shutdown()
            return False
        return True

    try:
        wait_until(connects, "the head node", timeout_s=timeout_s, poll_s=_PERIOD_S)
    except TimeoutError as error:
        raise RuntimeError(f"{error}; {reason}; the head node wrote: {_tail(log)}") from error


def end_what_is_left(mark: str, *, timeout_s: float = _END_TIMEOUT_S) -> list[str]:
    """Waits for the end of all processes that were started under a mark; kills and names those that go on."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not _marked(mark), "the end of every process", timeout_s=timeout_s, poll_s=_PERIOD_S)
    left = _marked(mark)
    lines = [_describe(process) for process in left]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return lines


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == mark:
                found.append(process)
    return [process for process in found if not is_gone(process.pid)]


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_MAX_LOG_CHARACTERS:].strip() or "nothing"


def _run(folder: Path, *, num_jobs: int, max_nodes: int) -> tuple[list[Sample], list[str]]:
    gcs_port = find_port(HOST, 0)
    address = f"{ray.util.get_node_ip_address()}:{gcs_port}"
    file = folder / "cluster.json"
    file.write_text(json.dumps(cluster_document(address, max_nodes=max_nodes)))
    with autoscaled_ray(folder, file, port=gcs_port):
        scaling = {**_SCALING, "max_replicas": max_nodes}
        settings = make_settings(folder, autoscaling=scaling, cluster_file=str(file))
        port = find_port(HOST, 0)
        serve.start(http_options={"host": HOST, "port": port, "location": "HeadOnly"})
        deploy(settings)
        url = f"http://{HOST}:{port}"
        wait_until(lambda: _answers(url), "an ingress replica", timeout_s=_START_TIMEOUT_S, poll_s=_PERIOD_S)
        return measure(url, num_jobs=num_jobs)


def _submit(client: httpx.Client, seed: int) -> str:
    body = {"prompt": "a red circle", "seed": seed, "num_inference_steps": _NUM_STEPS, "background_job": True}
    return str(client.post("/v1/images/generations", json=body).raise_for_status().json()["id"])


def _num_nodes() -> int:
    return sum(node["Alive"] and "node:__internal_head__" not in node["Resources"] for node in ray.nodes())


def _num_groups() -> int:
    group = serve.status().applications[APP_NAME].deployments["Group"]
    return sum(number for state, number in group.replica_states.items() if state == "RUNNING")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/live", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _first(samples: list[Sample], is_so: Any) -> float | None:
    return next((round(sample.at_s, 1) for sample in samples if is_so(sample)), None)


def _kill_tree(pid: int) -> None:
    try:
        root = psutil.Process(pid)
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    if _ENVIRONMENT.items() <= os.environ.items():
        sys.exit(main())
    else:  # Ray reads some of it when it is imported, which has happened above
        command = [sys.executable, "-m", "benchmarks.autoscaling_on_nodes", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | _ENVIRONMENT)
