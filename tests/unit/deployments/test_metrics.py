"""What `/metrics` says after what happened, and that the dashboard asks for what is there."""

import asyncio
import json
import pickle
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError

from deployments.group_client import CallStats, GeneratedMedia
from deployments.metrics import RequestMeter, ServiceMetrics, merge
from deployments.metrics_api import PeerMetrics, ReplicaMetrics
from planner.plan import PlannedShape
from tests.plans import make_wan_plan
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client, wait_until
from tests.unit.deployments.test_keys import AS_ALICE, KEYS
from workers.calls import Progress
from workers.errors import CallError, GroupDiedError

GOOD = {"prompt": "a very secret prompt", "seed": 3}
PICTURES, JOBS = "/v1/images/generations", "/v1/videos"
DASHBOARD = Path(__file__).parents[3] / "examples" / "grafana.json"


async def scrape(client, **headers):
    response = await client.get("/metrics", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name.removeprefix("heliograph_"), *(v for k, v in sorted(sample.labels.items()) if k != "replica")): (
            sample.value
        )
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_finished_failed_and_refused_requests_are_counted_by_reason(tmp_path):
    groups = FakeGroups(failures=[CallError("no"), GroupDiedError("gone")])
    service = make_service(groups)
    await service.prepare()
    async with open_client(service, tmp_path) as client:
        before = await scrape(client)
        assert before["request_success_total", "completed", "shapes"] == 0, "a rate needs its zero"
        assert (await client.post(PICTURES, json=GOOD)).status_code == 500
        assert (await client.post(PICTURES, json=GOOD)).status_code == 200, "made again by another group"
        assert (await client.post(PICTURES, json={**GOOD, "n": 2})).status_code == 200
        assert (await client.post(PICTURES, json={"prompt": ""})).status_code == 400
        assert (await client.get("/nothing")).status_code == 404
        after = await scrape(client)
    assert after["request_success_total", "completed", "shapes"] == 3
    assert after["request_failure_total", "generation_failed", "shapes"] == 1
    assert after["group_deaths_total", "shapes"] == 1
    assert after["http_errors_total", "invalid_value", "400"] == 1
    assert after["http_errors_total", "not_found", "404"] == 1
    assert after["e2e_request_latency_seconds_count", "shapes"] == 3
    assert after["request_queue_time_seconds_count", "shapes"] == 5, "each attempt that reached a group"
    assert (after["num_requests_running", "shapes"], after["num_requests_waiting", "shapes"]) == (0, 0)
    assert (after["num_groups", "shapes", "running"], after["num_groups", "shapes", "wanted"]) == (1, 1)


async def test_running_work_is_seen_and_cancelled_work_is_neither_success_nor_failure(tmp_path):
    groups = FakeGroups(gate=asyncio.Event())
    service = make_service(groups)
    async with open_client(service, tmp_path) as client:
        events = service.stream(service_request())
        assert (await anext(events)).stage == "queued"
        assert (await anext(events)).stage == "denoise"
        assert (await scrape(client))["num_requests_running", "shapes"] == 1
        await events.aclose()
        after = await scrape(client)
    assert after["num_requests_running", "shapes"] == 0
    assert after["request_success_total", "cancelled", "shapes"] == 1
    assert after["request_success_total", "completed", "shapes"] == 0
    assert not any(name == "request_failure_total" for name, *_ in after)


async def test_deadline_is_a_failure(tmp_path):
    service = make_service(FakeGroups(gate=asyncio.Event()), request_timeout_s=0.05)
    async with open_client(service, tmp_path) as client:
        assert (await client.post(PICTURES, json=GOOD)).status_code == 504
        assert (await scrape(client))["request_failure_total", "timeout", "shapes"] == 1


async def test_full_queue_and_jobs_are_seen(tmp_path):
    gate = asyncio.Event()
    groups = FakeGroups(gate=gate)
    service = make_service(groups, max_queued_requests=1)
    async with open_client(service, tmp_path) as client:
        assert (await client.post(JOBS, json=GOOD)).status_code == 200
        await groups.begun.wait()
        assert (await scrape(client))["num_jobs_unfinished", "shapes"] == 1
        waiting = asyncio.create_task(client.post(PICTURES, json=GOOD))

        async def both_run():
            return (await scrape(client))["num_requests_running", "shapes"] == 2

        await wait_until(both_run)
        assert (await client.post(PICTURES, json=GOOD)).status_code == 429
        assert (await scrape(client))["http_errors_total", "queue_full", "429"] == 1
        gate.set()
        assert (await waiting).status_code == 200


async def test_key_is_needed_unless_the_setting_says_otherwise(tmp_path):
    async with open_client(make_service(FakeGroups(), api_keys=KEYS), tmp_path / "closed") as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await scrape(client, **AS_ALICE))["http_errors_total", "invalid_api_key", "401"] == 1
    async with open_client(make_service(FakeGroups(), api_keys=KEYS, open_metrics=True), tmp_path / "open") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/plan")).status_code == 401


async def test_nothing_that_a_client_wrote_is_in_it(tmp_path):
    async with open_client(make_service(FakeGroups()), tmp_path) as client:
        await client.post(PICTURES, json={**GOOD, "user": "somebody-in-particular"})
        await client.get("/secret/path", headers={"x-request-id": "an-id-of-mine"})
        text = (await client.get("/metrics")).text
    for word in ("secret", "somebody-in-particular", "an-id-of-mine"):
        assert word not in text


async def test_number_that_nobody_tells_is_unknown_and_the_rest_is_there(tmp_path):
    class Silent(FakeGroups):
        async def status(self):
            await asyncio.Event().wait()

    async with open_client(make_service(Silent(), health_timeout_s=0.05), tmp_path) as client:
        answer = await scrape(client)
    assert answer["num_groups", "shapes", "running"] != answer["num_groups", "shapes", "running"], "NaN"
    assert answer["num_requests_running", "shapes"] == 0


def test_measured_is_set_beside_the_plan():
    plan = make_wan_plan(Path("/x"))
    plan = plan.model_copy(
        update={
            "device": "cuda",
            "memory": plan.memory.model_copy(update={"gpu_peak_bytes": (900, 300)}),
            "predicted": plan.predicted.model_copy(update={"step_s": 2.0}),
            "shape": PlannedShape(width=64, height=32, num_frames=1, batch_size=1),
        }
    )
    metrics = ServiceMetrics()
    metrics.watch("m", plan, num_wanted=1, queued_seconds=lambda: None)
    stats = CallStats(
        {"encode": 1.0, "denoise": 10.0, "decode": 1.0}, (1000, 500), 2, 1, 7, batch_size=1, gpu_used_bytes=(1500, 700)
    )
    for width in (64, 128):
        with RequestMeter(metrics, "m", plan) as meter:
            meter.on_event(Progress(stage="denoise", step=4, num_steps=10 if width == 128 else 4, seconds_left=None))
            meter.on_event(GeneratedMedia(content=b"", seed=1, width=width, height=32, stats=stats))

    def value(name, **labels):
        return metrics.registry.get_sample_value(f"heliograph_{name}", {"model": "m", **labels})

    assert value("gpu_peak_bytes", rank="0") == 1000
    assert value("gpu_used_bytes", rank="1") == 700
    assert value("gpu_peak_predicted_bytes", rank="1") == 300
    assert value("gpu_peak_predicted_to_measured_ratio") == 0.9
    assert value("step_time_predicted_to_measured_ratio") == 0.8, "of the planned shape only"
    assert value("gpu_seconds_total") == 2 * 2 * 12.0
    assert value("denoising_steps_total") == 14
    assert value("step_time_seconds_sum") == 3.5
    assert value("stage_time_seconds_sum", stage="denoise") == 20.0
    assert value("seam_serial_calls_total") == 14


def test_batch_size_counts_calls_by_the_pictures_of_each():
    metrics, plan = ServiceMetrics(), make_wan_plan(Path("/x"))
    for batch_size in (1, 1, 3):
        stats = CallStats({}, (), 0, 1, 0, batch_size=batch_size)
        with RequestMeter(metrics, "m", plan) as meter:
            meter.on_event(GeneratedMedia(content=b"", seed=1, width=32, height=32, stats=stats))
    values = {
        upper: metrics.registry.get_sample_value("heliograph_batch_size_bucket", {"model": "m", "le": upper})
        for upper in ("1.0", "2.0", "4.0")
    }
    assert values == {"1.0": 2, "2.0": 2, "4.0": 3}
    assert metrics.registry.get_sample_value("heliograph_batch_size_sum", {"model": "m"}) == 5


class FakeHandle:
    def __init__(self, answers):
        self.answers = answers

    def broadcast(self, method):
        assert method == "replica_metrics"
        return self

    async def results_async(self, *, timeout_s, return_exceptions):
        assert return_exceptions
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


def counted(replica, number):
    metrics = ServiceMetrics()
    metrics.num_steps.labels("m").inc(number)
    return metrics, pickle.loads(pickle.dumps(ReplicaMetrics(replica, metrics.collect())))


async def test_replicas_stand_side_by_side_whoever_is_asked():
    (metrics, own), (_, other) = counted("0", 3), counted("1", 5)
    gathered = await PeerMetrics(FakeHandle([other, own]), lambda: own, metrics)()
    families = {family.name: family for family in merge((one.replica, one.metrics) for one in gathered)}
    totals = {s.labels["replica"]: s.value for s in families["heliograph_denoising_steps"].samples if "total" in s.name}
    assert totals == {"0": 3, "1": 5}


@pytest.mark.parametrize("answers", [[RayActorError()], TimeoutError()], ids=["one died", "nobody answered"])
async def test_replica_that_does_not_answer_is_counted_and_ones_own_stays(answers):
    metrics, own = counted("0", 3)
    assert list(await PeerMetrics(FakeHandle(answers), lambda: own, metrics)()) == [own]
    assert metrics.registry.get_sample_value("heliograph_metrics_replicas_left_out_total") == 1


def test_dashboard_asks_for_metrics_that_exist():
    known = set()
    metrics = ServiceMetrics()
    for family in (*metrics.registry.collect(), *metrics.shared.collect()):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        known.update(family.name + suffix for suffix in suffixes)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"heliograph_\w+", query)}
    assert asked <= known, asked - known
    unused = {name for name in known if not name.endswith(("_sum", "_count"))} - asked
    assert not unused, f"in no panel: {unused}"
    assert all(re.search(r"heliograph_\w+", query) for query in queries)


def service_request():
    from deployments.schemas import ImageRequest

    return ImageRequest(prompt="a red circle")
