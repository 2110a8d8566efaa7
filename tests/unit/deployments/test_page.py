"""The page's files: complete, self-contained, open to anybody, and under a strict policy."""

import re
import tomllib
from pathlib import Path

import pytest

from deployments.page_api import PAGE_PATHS
from tests.unit.deployments.fakes import FakeGroups, make_service, open_client
from tests.unit.deployments.test_keys import KEYS

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deployments" / "page"


@pytest.fixture
async def client(tmp_path):
    async with open_client(make_service(FakeGroups(), api_keys=KEYS), tmp_path) as client:
        yield client


async def test_page_and_all_it_refers_to_come_without_a_key_under_a_strict_policy(client):
    found = set()
    for path in PAGE_PATHS:
        response = await client.get(path)
        assert response.status_code == 200, path
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"unsafe|\*|https?:|data:", policy)
        found |= set(re.findall(r'(?:href|src)="(/[^"]+)"', response.text))
        found |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', response.text)}
    assert found <= set(PAGE_PATHS)
    assert {path.name for path in FOLDER.iterdir()} == {Path(path).name or "index.html" for path in PAGE_PATHS}


async def test_what_the_page_asks_for_still_needs_a_key(client):
    for path in ("/v1/models", "/health", "/plan", "/page/../plan", "/page/none.js", "/page/"):
        assert (await client.get(path)).status_code == 401, path


async def test_setting_turns_the_page_off(tmp_path):
    async with open_client(make_service(FakeGroups(), page=False), tmp_path) as client:
        assert (await client.get("/")).status_code == 404


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_nothing_comes_from_elsewhere_or_from_the_markup(file):
    text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn|@import|\burl\(", text)
    assert not re.search(r"\sstyle=|\son\w+=|innerHTML|eval\(", text), "the policy refuses these, or should"


def test_every_input_has_a_label():
    html = (FOLDER / "index.html").read_text("utf-8")
    fields = re.findall(r'<(?:input|select|textarea) id="(\w+)"', html)
    assert len(fields) >= 9
    for field in fields:
        assert f'<label for="{field}">' in html


def test_wheel_holds_the_packages_folders():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert hatch == {"packages": ["deployments", "workers", "planner"]}, "whole folders, so the page is in it"
