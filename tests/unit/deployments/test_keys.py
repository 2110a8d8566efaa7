"""Nothing without a key, everything of one's own with it."""

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.errors import SettingsError
from deployments.exposure import check_exposure
from deployments.keys import KeyRing, make_key, read_keys
from deployments.settings import AppSettings
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from tests.unit.deployments.test_http_api import check_error

ALICE, ALICE_KEPT = make_key("alice")
BOB, BOB_KEPT = make_key("bob")
KEYS = [ALICE_KEPT.model_dump(), BOB_KEPT.model_dump()]
AS_ALICE, AS_BOB = ({"Authorization": f"Bearer {key}"} for key in (ALICE, BOB))
GOOD = {"prompt": "a red circle", "seed": 3}


@pytest.fixture
async def client(tmp_path):
    async with open_client(make_service(FakeGroups(), api_keys=KEYS), tmp_path) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {ALICE}", ALICE, f"Bearer {ALICE_KEPT.sha256}", "Bearer é"],
    ids=["none", "empty", "no key", "blank key", "wrong", "Basic", "no scheme", "hash", "not ASCII"],  # keys are random
)
async def test_every_route_but_live_needs_a_key(client, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    routes = [
        (method, path.replace("{video_id}", "video_1").replace("{image_id}", "image_1"))
        for path, methods in (await client.get("/openapi.json", headers=AS_ALICE)).json()["paths"].items()
        for method in methods
    ]
    assert len(routes) > 12
    for method, path in [*routes, ("get", "/docs"), ("get", "/openapi.json"), ("get", "/nothing"), ("get", "/live/")]:
        response = await client.request(method.upper(), path, headers=headers)
        if path in ("/live", "/results/{name}"):
            assert response.status_code != 401
            continue
        assert check_error(response, 401)["code"] == "invalid_api_key", path
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-should-retry"] == "false"


async def test_refused_request_is_not_read(client):
    async def endless():
        for _ in range(3):
            yield b" " * 1000
        raise AssertionError("the body of a stranger was read")

    assert (await client.post("/v1/videos", content=endless(), headers={"Authorization": "no"})).status_code == 401


async def test_jobs_belong_to_the_name_of_the_key(client):
    video_id = (await client.post("/v1/videos", json=GOOD, headers=AS_ALICE)).json()["id"]
    assert (await client.get(f"/v1/videos/{video_id}", headers=AS_ALICE)).status_code == 200
    for method, path in (("GET", ""), ("GET", "/content"), ("POST", "/cancel"), ("DELETE", "")):
        response = await client.request(method, f"/v1/videos/{video_id}{path}", headers=AS_BOB)
        check_error(response, 404, "video_id")
    assert (await client.get("/v1/videos", headers=AS_BOB)).json()["data"] == []
    assert (await client.get("/v1/videos", params={"after": video_id}, headers=AS_BOB)).status_code == 400


async def test_url_of_a_picture_needs_no_key(client):
    answer = await client.post("/v1/images/generations", json={**GOOD, "response_format": "url"}, headers=AS_ALICE)
    assert (await client.get(answer.json()["data"][0]["url"])).content == b"3"


def test_keys_come_from_the_settings_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who may\n\nbob {BOB_KEPT.sha256}\n")
    settings = AppSettings(checkpoint="c", api_keys=(ALICE_KEPT,), api_keys_file=str(file))
    keys = KeyRing(read_keys(settings))
    assert [keys.owner_of(key) for key in (ALICE, BOB, "other", "")] == ["alice", "bob", None, None]


@pytest.mark.parametrize(
    "content",
    ["", "bob", f"bob {BOB}", "bob " + "g" * 64, f"alice {BOB_KEPT.sha256}"],
    ids=["empty", "name alone", "key itself", "no hash", "name twice"],
)
def test_file_that_would_let_nobody_or_the_wrong_in_is_refused(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    own = () if content == "" else (ALICE_KEPT,)
    with pytest.raises(SettingsError) as caught:
        read_keys(AppSettings(checkpoint="c", api_keys=own, api_keys_file=str(file)))
    assert BOB not in str(caught.value)


def test_missing_file_of_keys_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="api_keys_file"):
        read_keys(AppSettings(checkpoint="c", api_keys_file=str(tmp_path / "none")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com"])
def test_open_port_without_a_key_is_refused_unless_it_is_meant(host):
    with pytest.raises(SettingsError, match="heliograph key"):
        check_exposure(AppSettings(checkpoint="c"), host)
    check_exposure(AppSettings(checkpoint="c", allow_open_port=True), host)
    check_exposure(AppSettings(checkpoint="c", api_keys=(ALICE_KEPT,)), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    check_exposure(AppSettings(checkpoint="c"), host)


def test_serve_refuses_an_open_port_before_anything_starts():
    result = CliRunner().invoke(app, ["serve", "checkpoints/shapes", "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "allow_open_port" in result.stderr


def test_key_command_shows_a_key_and_what_to_keep_of_it():
    result = CliRunner().invoke(app, ["key", "carol"])
    key = result.stdout.splitlines()[0].split()[-1]
    sha256 = result.stdout.splitlines()[-1].split()[-1]
    assert (
        KeyRing(read_keys(AppSettings(checkpoint="c", api_keys=({"name": "carol", "sha256": sha256},)))).owner_of(key)
        == "carol"
    )
    assert CliRunner().invoke(app, ["key", ""]).exit_code == 2
