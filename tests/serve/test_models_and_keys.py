"""One app with two models and two keys, as a process."""

import json
import re

import openai
import pytest

from deployments.keys import make_key
from tests.serve.conftest import SHAPES
from tests.serve.test_jobs_survive import VIDEO
from tests.unit.deployments.test_http_api import LIMITS

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.timeout(400)
def test_two_models_behind_keys(run_heliograph, tmp_path):
    (alice, alice_kept), (bob, bob_kept) = make_key("alice"), make_key("bob")
    keys = tmp_path / "keys"
    keys.write_text(f"bob {bob_kept.sha256}\n")
    args = {
        "models": [{"checkpoint": str(SHAPES)}, {"checkpoint": str(SHAPES), "name": "more shapes"}],
        "api_keys": [alice_kept.model_dump()],
        "api_keys_file": str(keys),
        "state": {"folder": str(tmp_path / "state")},
        "limits": LIMITS,
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"applications": [{"import_path": "deployments.app:build_app", "args": args}]}))
    command = run_heliograph("serve", config, "--port", "0")
    command.wait_for_line("Ctrl-C stops it", timeout_s=150)
    url = re.search(r"http://127\.0\.0\.1:\d+", command.stderr)[0]

    def client(key):
        return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

    with pytest.raises(openai.AuthenticationError):
        client("none").models.list()
    assert [model.id for model in client(alice).models.list()] == ["shapes", "more shapes"]
    with pytest.raises(openai.BadRequestError, match="say which model"):
        client(alice).images.generate(prompt="a red circle")
    extra = {"seed": 5, "num_inference_steps": 2}
    pictures = [
        client(alice).images.generate(model=name, prompt="a red circle", extra_body=extra).data[0].b64_json
        for name in ("shapes", "more shapes")
    ]
    assert pictures[0] == pictures[1], "the same weights, the same seed"
    steps = {"num_frames": VIDEO["num_frames"], "num_inference_steps": 2}
    video = client(bob).videos.create_and_poll(
        model="more shapes", prompt=VIDEO["prompt"], extra_body=steps, poll_interval_ms=200
    )
    assert video.status == "completed"
    with pytest.raises(openai.NotFoundError):
        client(alice).videos.retrieve(video.id)
    command.interrupt()
    assert command.wait(timeout_s=60) == 130
    command.check_nothing_left()
