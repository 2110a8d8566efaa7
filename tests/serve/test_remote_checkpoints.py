"""Groups whose checkpoint lies behind a URL: planned from there, fetched once, the same pictures."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import SHAPES
from tests.serve.processes import Command
from tests.tools.local_hub import Repository, local_hub
from tests.tools.private_s3 import private_s3

pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]
ASKED = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 2}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HELIOGRAPH_CHECKPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def s3_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shapes checkpoint in a bucket; commands find the server by their environment."""
    s3fs = pytest.importorskip("s3fs", reason="pip install heliograph[s3-test]")
    pytest.importorskip("moto.server", reason="pip install heliograph[s3-test]")
    with private_s3(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client = s3fs.S3FileSystem(skip_instance_cache=True)
        client.mkdir("models")
        client.put(f"{SHAPES}/", "models/shapes", recursive=True)
        yield "s3://models/shapes"


def generate(run_heliograph: Callable[..., Command], checkpoint: str | Path, output: Path) -> tuple[bytes, Command]:
    command = run_heliograph(
        "generate", checkpoint, "--prompt", ASKED["prompt"], "--seed", str(ASKED["seed"]), "--steps", "2",
        "--cfg-degree", "2", "--device", "cpu", "--output", output, "--json",
    )  # fmt: skip
    assert command.wait(timeout_s=150) == 0, command.stderr
    assert all(rank["weight_bytes_read"] > 0 for rank in json.loads(command.stdout)["ranks"])
    command.check_nothing_left()
    return output.read_bytes(), command


def test_group_of_two_ranks_makes_the_same_picture_from_a_bucket(
    s3_url: str, cache: Path, run_heliograph: Callable[..., Command], tmp_path: Path
) -> None:
    there, _ = generate(run_heliograph, s3_url, tmp_path / "there.png")
    (folder,) = (entry for entry in cache.iterdir() if entry.is_dir())
    assert (folder / "model_index.json").read_bytes() == (SHAPES / "model_index.json").read_bytes()
    here, _ = generate(run_heliograph, SHAPES, tmp_path / "here.png")
    assert there == here


def test_group_makes_the_same_picture_from_a_hub(
    cache: Path, run_heliograph: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_hub() as hub:
        hub.repositories["owner/shapes"] = Repository({"main": SHAPES})
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(name, value)
        there, _ = generate(run_heliograph, "hf://owner/shapes@main", tmp_path / "there.png")
        total = sum(file.stat().st_size for file in SHAPES.rglob("*.safetensors"))
        fetched = hub.body_bytes(".safetensors")
    assert total < fetched < 1.2 * total, "one rank fetches, and the planner reads headers"
    here, _ = generate(run_heliograph, SHAPES, tmp_path / "here.png")
    assert there == here


def test_service_of_a_bucket_answers(
    s3_url: str, cache: Path, run_heliograph: Callable[..., Command], tmp_path: Path
) -> None:
    settings = {"checkpoint": s3_url, "plan": {"device": "cpu", "num_ranks": 1, "cpus_per_rank": 1}}
    application = {"name": "default", "import_path": "deployments.app:build_app", "args": settings}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"applications": [application]}))
    command = run_heliograph("serve", config, "--port", "0")
    command.wait_for_line("Ctrl-C stops it", timeout_s=200)
    url = re.search(r"http://127\.0\.0\.1:\d+", command.stderr)
    assert url is not None
    answer = httpx.post(f"{url[0]}/v1/images/generations", json=ASKED, timeout=60)
    assert answer.status_code == 200
    assert httpx.get(f"{url[0]}/v1/models", timeout=20).json()["data"][0]["id"] == "shapes"
    command.interrupt()
    assert command.wait(timeout_s=60) == 130, command.stderr
    command.check_nothing_left()
