"""All bad requests of the list against the real app, byte for byte over TCP; its ranks live on."""

import http.client
import json
import socket
import urllib.parse
from contextlib import closing

import pytest

from tests.serve.test_failures import rank_pids
from tests.unit.deployments.threats import GENERATIONS, OTHERS_JOB, RESULT, THREATS, Sent, post_json

GOOD = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 1}


def send_over_tcp(url: str, sent: Sent) -> tuple[int, bytes]:
    """Status and content of the answer. What is sent is written as it stands; the server may answer in between."""
    address = urllib.parse.urlsplit(url)
    sent = sent.with_defaults(("host", address.netloc), ("connection", "close"))
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers)
    message = f"{sent.method} {sent.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + _body(sent)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(message)
        with closing(http.client.HTTPResponse(connection, method=sent.method)) as response:
            response.begin()
            return response.status, response.read()


def _body(sent: Sent) -> bytes:
    if not sent.is_chunked:
        return b"".join(sent.chunks)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in sent.chunks)
    return chunks if sent.stalls else chunks + b"0\r\n\r\n"


@pytest.fixture
def places(app):
    """A result, and a job's id."""
    _, result = send_over_tcp(app.url, post_json({**GOOD, "response_format": "url"}))
    _, job = send_over_tcp(app.url, post_json({**GOOD, "background_job": True}))
    return {RESULT: urllib.parse.urlsplit(json.loads(result)["data"][0]["url"]).path, OTHERS_JOB: json.loads(job)["id"]}


def test_bad_requests_are_refused_and_the_ranks_live_on(app, places):
    before, wrong = rank_pids(), []
    for threat in THREATS:
        if threat.needs_keys:
            continue
        status, content = send_over_tcp(app.url, threat.sent.to(places))
        if threat.may_stop_at_server and status == 400 and not content.startswith(b"{"):
            continue
        if status != threat.status or set(json.loads(content)["error"]) != {"message", "type", "param", "code"}:
            wrong.append((threat.name, status, content[:200]))
    assert not wrong
    assert send_over_tcp(app.url, post_json(GOOD, GENERATIONS))[0] == 200
    assert set(rank_pids()) == set(before)
    assert len(before) == 2
