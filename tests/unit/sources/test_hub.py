"""Checkpoints on a model hub, by the hub's own client, from a hub on loopback."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.checkpoint import read_checkpoint
from planner.errors import CheckpointError
from tests.tools.local_hub import TOKEN, Hub, Repository, local_hub
from tests.unit.sources import remote_checks as checks
from workers.errors import LoadError

URL = "hf://owner/wan"


@pytest.fixture
def hub(tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the checkpoint under several names; the client of this process is led to it."""
    from huggingface_hub import HfFileSystem, constants

    with local_hub() as running:
        other = Path(shutil.copytree(tiny_wan, tmp_path / "other"))
        (other / "vae" / "config.json").write_text((tiny_wan / "vae" / "config.json").read_text() + "\n")
        running.repositories |= {
            "owner/wan": Repository({"main": tiny_wan, "other/branch": other}),
            "owner/gated": Repository({"main": tiny_wan}, access="gated"),
            "owner/private": Repository({"main": tiny_wan}, access="private"),
        }
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "ENDPOINT", running.url)  # read from the environment when it was imported
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        HfFileSystem.clear_instance_cache()
        yield running
        HfFileSystem.clear_instance_cache()


def read_both(url: str, cache: Path) -> list[Callable[[], Any]]:
    return [lambda: read_checkpoint(url), lambda: checks.fetch(url, cache)]


def test_planner_reads_headers_by_ranges_and_nothing_else(tiny_wan: Path, hub: Hub) -> None:
    checks.assert_read_alike(URL, tiny_wan)
    weights = checks.weight_files(tiny_wan)
    assert len(weights) == 3
    for file in weights:
        assert hub.body_bytes(f"{file.relative_to(tiny_wan)}") == checks.header_bytes(file)
    assert len(hub.asked) < 60


def test_fetch_takes_every_byte_once_and_shows_the_token_to_the_hub_alone(
    tiny_wan: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    checks.assert_fetched_alike(checks.fetch("hf://owner/gated", tmp_path / "cache"), tiny_wan)
    for file in checks.weight_files(tiny_wan):
        assert hub.body_bytes(f"{file.relative_to(tiny_wan)}") == file.stat().st_size
    assert {one.token for one in hub.asked if one.server == "hub" and "owner" in one.path} == {TOKEN}
    assert {one.token for one in hub.asked if one.server == "large files"} == {""}


@pytest.mark.full
@pytest.mark.parametrize("page_size", [1, 1000])
def test_listings_of_any_page_size_are_whole(page_size: int, tiny_wan: Path, hub: Hub, tmp_path: Path) -> None:
    hub.page_size = page_size
    checks.assert_fetched_alike(checks.fetch(URL, tmp_path / "cache"), tiny_wan)


@pytest.mark.full
def test_revisions_are_checkpoints_of_their_own(tiny_wan: Path, hub: Hub, tmp_path: Path) -> None:
    other = hub.repositories["owner/wan"].revisions["other/branch"]
    url = f"{URL}@other%2Fbranch"
    checks.assert_read_alike(url, other)
    assert read_checkpoint(url).fingerprint != read_checkpoint(URL).fingerprint
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), other)
    checks.assert_fetched_alike(checks.fetch(URL, tmp_path / "cache"), tiny_wan)
    checks.assert_fetched_alike(checks.fetch(f"{URL}@main", tmp_path / "cache"), tiny_wan)


@pytest.mark.full
def test_push_of_the_same_size_is_another_checkpoint(hub: Hub, tmp_path: Path) -> None:
    """The hub's listing has neither etag nor time, only the content's digest."""
    folder = Path(shutil.copytree(hub.repositories["owner/wan"].revisions["main"], tmp_path / "pushed"))
    hub.repositories["owner/wan"] = Repository({"main": folder})
    first = checks.fetch(URL, tmp_path / "cache")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    second = checks.fetch(URL, tmp_path / "cache")
    assert second != first
    checks.assert_fetched_alike(second, folder)


@pytest.mark.parametrize(
    ("url", "token", "advice"),
    [
        ("hf://owner/gated", "", "the repository is gated: accept its terms.*HF_TOKEN"),
        ("hf://owner/private", "", "of a private or gated repository, set HF_TOKEN"),
        ("hf://owner/none", "", r"check the name \(hf://OWNER/NAME\)"),
        ("hf://owner/none", TOKEN, r"check the name \(hf://OWNER/NAME\)"),
        ("hf://owner/wan", "hf_wrong", "Invalid credentials.*set HF_TOKEN to a token that may read it"),
        ("hf://owner/wan@none", "", "what follows @ must be a branch, a tag or a commit"),
        ("hf://wan", "", r"hf://OWNER/NAME"),
    ],
)
def test_refusals_name_the_address_and_what_to_change(
    url: str, token: str, advice: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for read in read_both(url, tmp_path / "cache"):
        with pytest.raises((CheckpointError, LoadError), match=re.escape(url) + f".*{advice}") as caught:
            read()
        assert "\n" not in str(caught.value)
    checks.assert_nothing_kept(tmp_path / "cache")


def test_offline_mode_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for read in read_both(URL, tmp_path / "cache"):
        with pytest.raises(
            (CheckpointError, LoadError), match=re.escape(URL) + ".*offline mode is on: unset HF_HUB_OFFL"
        ):
            read()
    assert hub.asked == []


@pytest.mark.parametrize("missing", ["model_index.json", "vae/diffusion_pytorch_model.safetensors"])
def test_missing_file_is_named(missing: str, tiny_wan: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_wan, tmp_path / "spoilt"))
    (folder / missing).unlink()
    hub.repositories["owner/wan"] = Repository({"main": folder})
    with pytest.raises(CheckpointError, match=re.escape(URL) + ".* has no (weights|model_index)"):
        read_checkpoint(URL)


@pytest.mark.full
def test_torn_file_is_named_by_its_address(tiny_wan: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_wan, tmp_path / "spoilt"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    hub.repositories["owner/wan"] = Repository({"main": folder})
    for read in read_both(URL, tmp_path / "cache"):
        with pytest.raises(
            (CheckpointError, LoadError), match=re.escape(f"{URL}/vae/{file.name}") + ".*(torn|truncated)"
        ):
            read()
    checks.assert_nothing_kept(tmp_path / "cache")


@pytest.mark.full
def test_plan_command_needs_the_environment_only(hub: Hub, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    checks.assert_planned(checks.plan_by_command("hf://owner/private@main", environment), "hf://owner/private@main")
    for changes, advice in (
        ({"HF_TOKEN": "hf_wrong"}, "set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "unset HF_HUB_OFFLINE"),
    ):
        refused = checks.plan_by_command("hf://owner/private", environment | changes)
        assert refused.returncode == 2, refused.stderr
        assert advice in refused.stderr
        assert "Traceback" not in refused.stderr
