"""The live cluster over HTTP: where it is looked for, what is understood, and that a named one must answer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from planner import live_cluster
from planner.cluster import GIB, cluster_from_ray_nodes
from planner.errors import ClusterError
from planner.live_cluster import find_live_nodes
from tests.tools.answering import answering

ROWS = [
    {
        "state": "ALIVE",
        "resources_total": {"CPU": 96.0, "GPU": 8.0, "memory": 512.0 * GIB, "accelerator_type:H100": 1.0},
        "labels": {"ray.io/accelerator-type": "H100"},
    },
    {"state": "DEAD", "resources_total": {}, "labels": None},
    {"state": "ALIVE", "resources_total": {"CPU": 4.0, "memory": 12.0 * GIB}, "labels": {}},
]
ANSWER = json.dumps({"result": True, "msg": "", "data": {"result": {"total": 3, "result": ROWS}}}).encode()


@contextmanager
def dashboard(answer: bytes = ANSWER, *, token: str | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers as Ray's dashboard does; the list gets the token of each request."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            if not self.path.startswith("/api/v0/nodes"):
                self.send_error(404)
            elif token is not None and seen[-1] != f"Bearer {token}":
                self.send_error(401)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with answering(Handler) as url:
        yield url, seen


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_named_cluster_is_planned_for(variable: str) -> None:
    with dashboard() as (url, _):
        live = find_live_nodes({variable: url})
    assert live.nodes is not None
    cluster = cluster_from_ray_nodes(live.nodes)
    assert sorted((node.num_gpus, node.gpu_type, node.count) for node in cluster.node_types) == [
        (0, None, 1),
        (8, "H100", 1),
    ]


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://127.0.0.1:10001", "127.0.0.1"])
def test_dashboard_is_looked_for_on_the_host_of_an_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard() as (url, _):
        monkeypatch.setattr(live_cluster, "DASHBOARD_PORT", int(url.rpartition(":")[2]))
        assert find_live_nodes({"RAY_ADDRESS": address}).nodes


def test_named_cluster_that_does_not_answer_is_an_error_not_another_cluster() -> None:
    with dashboard() as (url, _):
        pass
    with pytest.raises(ClusterError, match="unset RAY_ADDRESS"):
        find_live_nodes({"RAY_ADDRESS": url})


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"data": null}', b'{"data": {"result": {"result": [1]}}}'])
def test_answer_of_something_else_is_an_error(answer: bytes) -> None:
    with dashboard(answer) as (url, _), pytest.raises(ClusterError, match="does not say which nodes"):
        find_live_nodes({"RAY_ADDRESS": url})


def test_token_is_sent_only_where_one_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    variables = {"RAY_AUTH_TOKEN_PATH": str(file)}
    with dashboard() as (url, seen):
        find_live_nodes({"RAY_ADDRESS": url, **variables})
        assert seen == [None]
    with dashboard(token="secret") as (url, seen):
        assert find_live_nodes({"RAY_ADDRESS": url, **variables}).nodes
        assert seen == [None, "Bearer secret"]
        assert find_live_nodes({"RAY_ADDRESS": url, "RAY_AUTH_TOKEN": "secret"}).nodes
        with pytest.raises(ClusterError, match="401"):
            find_live_nodes({"RAY_ADDRESS": url, "RAY_AUTH_TOKEN": "wrong"})
    home = tmp_path / "home" / ".ray"
    home.mkdir(parents=True)
    (home / "auth_token").write_text("at home")
    with dashboard(token="at home") as (url, _):
        assert find_live_nodes({"RAY_ADDRESS": url, "HOME": str(tmp_path / "home")}).nodes


def test_cluster_of_this_machine_is_found_by_rays_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RAY_TMPDIR": str(tmp_path)}
    assert find_live_nodes(variables) == find_live_nodes({**variables, "RAY_ADDRESS": "local"})
    assert find_live_nodes(variables).nodes is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    with dashboard() as (url, _):
        monkeypatch.setattr(live_cluster, "DASHBOARD_PORT", int(url.rpartition(":")[2]))
        assert find_live_nodes({**variables, "RAY_ADDRESS": "auto"}).nodes
    # Left behind by a cluster that is gone: said, and something else is planned for.
    gone = find_live_nodes(variables)
    assert gone.nodes is None
    assert gone.note is not None
    assert "not planned for" in gone.note
