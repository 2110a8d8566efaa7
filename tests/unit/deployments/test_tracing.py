"""Spans of each picture and video: in memory, and over HTTP as a collector gets them."""

from http.server import BaseHTTPRequestHandler

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.errors import RequestError
from deployments.schemas import ImageRequest, VideoRequest
from deployments.settings import AppSettings, TracingSettings
from deployments.tracing import Tracing, make_provider, open_tracing
from tests.tools.answering import answering
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from workers.errors import CallError, GroupDiedError

PROMPT = "a secret prompt"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """A service whose finished spans are kept here."""

    def __init__(self, groups, **settings):
        self.exporter = InMemorySpanExporter()
        self.service = make_service(groups, **settings)
        self.service.tracing = Tracing(make_provider(self.exporter, service_name="test"))

    def spans(self):
        self.service.tracing.close()
        return self.exporter.get_finished_spans()


def names_under(spans, whole):
    children = [span for span in spans if span.parent is not None and span.parent.span_id == whole.context.span_id]
    return [span.name for span in sorted(children, key=lambda span: span.start_time)]


async def test_each_picture_is_a_span_with_one_a_stage():
    traced = Traced(FakeGroups())
    await traced.service.generate(ImageRequest(prompt=PROMPT, n=2))
    await traced.service.generate(VideoRequest(prompt=PROMPT, seed=1))
    spans = traced.spans()
    wholes = [span for span in spans if span.parent is None]
    assert [span.name for span in wholes] == ["picture", "picture", "video"]
    for whole in wholes:
        assert names_under(spans, whole) == ["queue", "denoise"], "the stages that the fake group tells of"
        assert dict(whole.attributes) == {
            "heliograph.model": "shapes", "heliograph.num_steps": 2, "heliograph.width": 32, "heliograph.height": 32,
        }  # fmt: skip
        assert whole.status.is_ok or whole.status.is_unset
    assert PROMPT not in "".join(span.to_json() for span in spans)


async def test_death_of_a_group_is_seen_and_what_follows_it():
    traced = Traced(FakeGroups(failures=[GroupDiedError("gone")]))
    await traced.service.generate(ImageRequest(prompt=PROMPT))
    spans = traced.spans()
    (whole,) = [span for span in spans if span.parent is None]
    assert names_under(spans, whole) == ["queue", "denoise", "queue", "denoise"]
    assert [event.name for event in whole.events] == ["group died"]


async def test_failure_is_named_by_its_code_and_not_by_its_message():
    traced = Traced(FakeGroups(failures=[CallError(f"cannot do {PROMPT}")]))
    with pytest.raises(RequestError):
        await traced.service.generate(ImageRequest(prompt=PROMPT))
    spans = traced.spans()
    (whole,) = [span for span in spans if span.parent is None]
    assert not whole.status.is_ok
    assert whole.status.description == "generation_failed"
    assert PROMPT not in "".join(span.to_json() for span in spans)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_s_trace_goes_on_here(tmp_path, stream):
    traced = Traced(FakeGroups())
    async with open_client(traced.service, tmp_path) as client:
        response = await client.post(
            "/v1/images/generations",
            json={"prompt": PROMPT, "stream": stream},
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
        assert response.status_code == 200
    (picture,) = [span for span in traced.spans() if span.name == "picture"]
    assert (f"{picture.context.trace_id:032x}", f"{picture.parent.span_id:016x}") == (TRACE, PARENT)


async def test_nonsense_as_parent_harms_nothing(tmp_path):
    traced = Traced(FakeGroups())
    async with open_client(traced.service, tmp_path) as client:
        for value in ("nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" * 300):
            response = await client.post(
                "/v1/images/generations", json={"prompt": PROMPT}, headers={"traceparent": value}
            )
            assert response.status_code == 200
    assert all(span.parent is None for span in traced.spans() if span.name == "picture")


async def test_collector_gets_the_spans_by_otlp():
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with answering(Collector) as url:
        service = make_service(FakeGroups())
        service.tracing = open_tracing(TracingSettings(endpoint=f"{url}/v1/traces", service_name="pictures"))
        await service.generate(ImageRequest(prompt=PROMPT))
        service.tracing.close()
    spans = [s for _, r in received for each in r.resource_spans for scope in each.scope_spans for s in scope.spans]
    assert sorted(span.name for span in spans) == ["denoise", "picture", "queue"]
    resource = received[0][1].resource_spans[0].resource
    assert ("service.name", "pictures") in [(a.key, a.value.string_value) for a in resource.attributes]
    assert received[0][0] == "/v1/traces"


def test_nothing_is_traced_unless_an_endpoint_is_set():
    assert open_tracing(AppSettings(checkpoint="/models/shapes").tracing) is None


def test_endpoint_must_be_a_url():
    with pytest.raises(ValueError, match="http"):
        TracingSettings(endpoint="collector:4317")
