"""The head node dies with everything on it and comes back, with Ray's state in Redis: groups and jobs outlive it."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.config_check import IMPORT_PATH
from deployments.local_serve import find_port
from tests.serve.head_and_nodes import HOST, WITH_TOKEN, HeadAndNodes, kill_node, pids_on
from tests.serve.processes import ROOT, Command, wait_until
from tests.tools.private_redis import private_redis

RANK = "ray::RankActor"
PROMPT = {"prompt": "a red circle", "seed": 1, "response_format": "b64_json"}
NUM_JOBS = 6

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def deploy(nodes: HeadAndNodes, folder: Path) -> str:
    """Hands the app to Serve as a person does; the service's address."""
    port = find_port(HOST, 0)
    settings = {
        "checkpoint": str(ROOT / "checkpoints" / "shapes"),
        "plan": {"device": "cpu", "num_ranks": 2, "cfg_degree": 2, "cpus_per_rank": 1},
        "state": {"folder": str(folder / "state")},
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": HOST, "port": port},
        "applications": [{"name": "heliograph", "route_prefix": "/", "import_path": IMPORT_PATH, "args": settings}],
    }
    file = folder / "app.yaml"
    file.write_text(yaml.safe_dump(config))
    serve = str(Path(sys.executable).parent / "serve")
    command = Command(["deploy", str(file), "--address", nodes.dashboard], folder / "deploy", serve, WITH_TOKEN)
    assert command.wait() == 0, command.stdout + command.stderr
    return f"http://{HOST}:{port}"


def health(url: str) -> int:
    """Its status; 0 while nobody listens."""
    try:
        return httpx.get(f"{url}/health", timeout=10).status_code
    except httpx.TransportError:
        return 0


def post(url: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(url, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_groups_and_accepted_jobs_outlive_the_head(short_folder: Path) -> None:
    with private_redis() as redis, contextlib.closing(HeadAndNodes(short_folder, redis)) as nodes:
        head, node = nodes.start_head(), nodes.start_node(num_cpus=4)
        url = deploy(nodes, short_folder)
        wait_until(lambda: health(url) == 200, "health", timeout_s=180)
        picture = post(f"{url}/v1/images/generations", **PROMPT)["data"]
        ranks = pids_on(node, RANK)
        assert len(ranks) == 2
        jobs = [
            post(f"{url}/v1/videos", prompt="a red circle moving right", seed=seed)["id"] for seed in range(NUM_JOBS)
        ]

        kill_node(head)
        killed = time.monotonic()
        assert health(url) == 0
        assert pids_on(node, RANK) == ranks
        nodes.start_head()
        wait_until(lambda: health(url) == 200, "health after the head's return", timeout_s=180)
        print(json.dumps({"health_back_s": round(time.monotonic() - killed, 1)}))

        def states() -> set[str]:
            return {httpx.get(f"{url}/v1/videos/{job}", timeout=10).json()["status"] for job in jobs}

        wait_until(lambda: states() <= {"completed", "failed"}, "the jobs' end", timeout_s=180)
        assert states() == {"completed"}
        assert post(f"{url}/v1/images/generations", **PROMPT)["data"] == picture
        assert pids_on(node, RANK) == ranks, "the group was started anew"
