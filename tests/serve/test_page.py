"""The page in a real browser, in front of a real service: `pip install heliograph[browser]` and a Chromium."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from deployments.keys import make_key
from tests.serve.conftest import SHAPES
from tests.serve.processes import Command, heliograph

playwright = pytest.importorskip("playwright.sync_api", reason="pip install heliograph[browser]")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]
KEY, KEPT = make_key("alice")
SLOW_STEPS = "100"
WAIT_MS = 60_000
READ_PIXELS = """image => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 64;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [...context.getImageData(0, 0, 64, 64).data];
}"""


class Service:
    """A service of two ingress replicas as a process, and its address."""

    def __init__(self, folder):
        args = {
            "checkpoint": str(SHAPES),
            "plan": {"device": "cpu", "num_ranks": 2, "cfg_degree": 2, "cpus_per_rank": 0.5},
            "api_keys": [KEPT.model_dump()],
            "max_queued_seconds": 1e6,  # nothing here is refused for its length
            "state": {"folder": str(folder / "state")},
        }
        config = folder / "config.yaml"
        config.write_text(json.dumps({"applications": [{"import_path": "deployments.app:build_app", "args": args}]}))
        self.command: Command = heliograph("serve", config, "--port", "0", folder=folder / "run")
        try:
            self.command.wait_for_line("Ctrl-C stops it", timeout_s=200)
        except BaseException:
            self.command.kill_all()
            raise
        self.url = re.search(r"http://127\.0\.0\.1:\d+", self.command.stderr)[0]

    def stop(self):
        self.command.interrupt()
        self.command.wait(timeout_s=90)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("page"))
    yield service
    service.command.kill_all()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, service):
    """The page, with a valid key; fails on what the policy refused, on script errors and requests to elsewhere."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: "Security Policy" in message.text and complaints.append(message.text))
    page.on("request", lambda request: request.url.startswith((service.url, "blob:")) or complaints.append(request.url))
    page.goto(service.url)
    give_key(page, KEY)
    playwright.expect(page.locator("#model option")).to_have_count(1, timeout=WAIT_MS)
    yield page
    context.close()
    assert not complaints


def give_key(page, key):
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_label("Key", exact=True).press("Enter")


def test_typed_prompt_becomes_a_picture_with_live_steps(page, service):
    page.evaluate(
        "() => { window.said = []; new MutationObserver(() => window.said.push("
        "document.getElementById('progress-text').textContent)).observe("
        "document.getElementById('progress-text'), {childList: true}); }"
    )
    page.get_by_label("Prompt").fill("a red circle on a white background")
    page.get_by_label("Steps").fill("12")
    page.get_by_label("Seed", exact=True).fill("7")
    page.keyboard.press("Control+Enter")
    picture = page.locator("#view img")
    picture.wait_for()
    assert picture.get_attribute("alt") == "a red circle on a white background"
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 64
    steps = [int(m[1]) for m in (re.search(r"step (\d+) of 12", text) for text in page.evaluate("window.said")) if m]
    assert steps == sorted(steps)
    assert len(set(steps)) > 6, "steps are seen as they are made"
    assert "seed 7" in page.locator("#caption").inner_text()
    assert page.locator("#gallery button").count() == 1
    assert page.locator("#plan-weights .part").count() >= 2
    same = httpx.post(
        f"{service.url}/v1/images/generations",
        json={"prompt": "a red circle on a white background", "num_inference_steps": 12, "seed": 7},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    ).json()["data"][0]["b64_json"]
    pixels = picture.evaluate(READ_PIXELS)
    expected = Image.open(io.BytesIO(base64.b64decode(same))).convert("RGBA")
    assert bytes(pixels) == expected.tobytes(), "the page shows what the API gives for this seed"


def test_previews_are_shown_while_a_picture_is_made(page):
    page.get_by_label("Prompt").fill("a red circle on a white background")
    page.get_by_label("Steps").fill(SLOW_STEPS)
    page.locator("#generate").click()
    preview = page.locator("#preview[alt='Preview 1 of the picture']")
    preview.wait_for()
    assert len(set(preview.evaluate(READ_PIXELS))) > 10, "there is something to see"
    page.locator("#view img").wait_for()
    assert page.locator("#preview").is_hidden()


def test_copied_programs_make_the_picture_again(page, tmp_path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Prompt").fill('it\'s a red circle on a "white" background')
    page.get_by_label("Steps").fill("2")
    page.locator("#generate").click()
    page.locator("#view img").wait_for()
    environment = {**os.environ, "HELIOGRAPH_KEY": KEY}
    programs = {}
    for language, line in (("Python", [sys.executable, "-"]), ("curl", ["bash", "-s"])):
        page.locator("#caption").get_by_role("button", name=f"Copy as {language}").click()
        page.get_by_text("Copied.").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        assert KEY not in text
        done = subprocess.run(
            line, input=text.encode(), env=environment, cwd=tmp_path, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        programs[language] = done.stdout
    by_curl = base64.b64decode(json.loads(programs["curl"])["data"][0]["b64_json"])
    assert (tmp_path / "picture.png").read_bytes() == by_curl
    pixels = page.locator("#view img").evaluate(READ_PIXELS)
    assert bytes(pixels) == Image.open(io.BytesIO(by_curl)).convert("RGBA").tobytes()


def test_video_is_made_by_a_job_and_plays(page):
    page.get_by_label("Prompt").fill("a blue square")
    page.get_by_label("video", exact=True).check()
    page.get_by_label("Frames").fill("5")
    page.get_by_label("Steps").fill("2")
    page.locator("#generate").click()
    video = page.locator("#view video")
    video.wait_for()
    read_width = "video => new Promise(done => video.readyState ? done() : video.onloadedmetadata = done)"
    video.evaluate(read_width)
    assert video.evaluate("video => [video.videoWidth, video.videoHeight, video.error]") == [64, 64, None]


def test_cancel_frees_the_group_and_says_so(page):
    page.get_by_label("Prompt").fill("a blue square")
    page.get_by_label("Steps").fill(SLOW_STEPS)
    page.get_by_label("Width").fill("128")
    page.get_by_label("Height").fill("128")
    page.locator("#generate").click()
    page.locator("#progress-text", has_text="step").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Cancelled.").wait_for()
    assert page.locator("#view img").count() == 0
    page.locator("#health[data-state=ok]").wait_for()
    assert page.locator("#generate").is_enabled()


def test_queue_of_all_ingress_replicas_is_shown_while_there_is_one(page, service):
    body = {
        "prompt": "a blue square", "num_inference_steps": int(SLOW_STEPS), "size": "128x128", "n": 10, "stream": True,
    }  # fmt: skip
    as_alice = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.url, headers=as_alice, timeout=60) as client, ExitStack() as streams:
        for _ in range(3):
            response = streams.enter_context(client.stream("POST", "/v1/images/generations", json=body))
            assert response.status_code == 200
        queue = page.get_by_role("list", name="What runs and waits").get_by_role("listitem")
        playwright.expect(queue).to_have_text(re.compile("^shapes 1 running, 2 waiting"), timeout=WAIT_MS)
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert queue.is_visible()
    # Their clients have left: nobody waits any more.
    playwright.expect(queue).to_have_text("shapes 0 running, 0 waiting", timeout=WAIT_MS)


def test_servers_message_is_shown_as_it_is(page):
    page.get_by_label("Prompt").fill("a blue square")
    page.get_by_label("Steps").fill("5000")
    page.locator("#generate").click()
    page.locator("#error", has_text="num_inference_steps").wait_for()


def test_wrong_key_is_asked_for_again_and_kept_for_the_tab_only(page):
    page.get_by_role("button", name="API key").click()
    give_key(page, "wrong")
    page.locator("#key-message", has_text="a valid API key is needed").wait_for()
    give_key(page, KEY)
    page.locator("#health[data-state=ok], #health[data-state=busy]").wait_for()
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_everything_fits_a_narrow_screen(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_metrics_of_all_ingress_replicas_come_from_whichever_is_asked(service):
    as_alice = {"Authorization": f"Bearer {KEY}"}
    body = {"prompt": "a red circle", "num_inference_steps": 3}
    assert httpx.post(f"{service.url}/v1/images/generations", json=body, headers=as_alice, timeout=60).is_success
    for _ in range(4):
        response = httpx.get(f"{service.url}/metrics", headers=as_alice, timeout=30)
        assert response.status_code == 200
        samples = [s for family in text_string_to_metric_families(response.text) for s in family.samples]
        assert {sample.labels.get("replica") for sample in samples} == {"0", "1", None}
        groups = {s.labels["state"]: s.value for s in samples if s.name == "heliograph_num_groups"}
        assert groups == {"running": 1, "wanted": 1}, "told once, not by each replica"
        totals = {
            name: sum(s.value for s in samples if s.name == f"heliograph_{name}")
            for name in (
                "denoising_steps_total", "stage_time_seconds_count", "e2e_request_latency_seconds_count",
                "batch_size_count", "batch_size_sum",
            )
        }  # fmt: skip
        assert totals["denoising_steps_total"] >= 3
        assert totals["stage_time_seconds_count"] == 3 * totals["e2e_request_latency_seconds_count"] > 0
        assert totals["batch_size_count"] == totals["batch_size_sum"] == totals["e2e_request_latency_seconds_count"]


def test_server_that_is_gone_is_said(page, service):
    """The last one: it ends the service."""
    page.get_by_label("Prompt").fill("a blue square")
    service.stop()
    page.locator("#generate").click()
    page.locator("#error", has_text="The server does not answer").wait_for()
    page.locator("#health[data-state=gone]").wait_for()
