"""Checkpoints in a bucket of Google Cloud Storage, by the real client, from an emulator in a process of its own."""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.checkpoint import read_checkpoint
from planner.errors import CheckpointError
from tests.tools.private_gcs import BUCKET, private_gcs
from tests.tools.recording_proxy import Recording, recording_proxy
from tests.unit.sources import remote_checks as checks
from workers.errors import LoadError

gcsfs = pytest.importorskip("gcsfs", reason="pip install heliograph[gcs-test]")
pytest.importorskip("gcp_storage_emulator", reason="pip install heliograph[gcs-test]")
pytestmark = pytest.mark.full

REFUSALS = {
    401: b'{"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.get access"}}',
    403: b'{"error": {"code": 403, "message": "reader@x does not have storage.objects.get access"}}',
}
_WITHOUT_ACCOUNT = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask the real service what sort of bucket it is
    "NO_GCE_CHECK": "true",  # no search for a machine's own account
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with private_gcs(tmp_path_factory.mktemp("gcs")) as environment:
        yield {**environment, **_WITHOUT_ACCOUNT}


@pytest.fixture(autouse=True)
def environment(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    found = {**server, "CLOUDSDK_CONFIG": str(tmp_path / "no_account")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield found
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def recording(environment: dict[str, str]) -> Iterator[Recording]:
    with recording_proxy(os.environ["STORAGE_EMULATOR_HOST"]) as recorded:
        yield recorded


def use(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", recording.url)


def upload(folder: Path) -> str:
    name = f"wan-{uuid.uuid4().hex[:8]}"
    gcsfs.GCSFileSystem(skip_instance_cache=True).put(f"{folder}/", f"{BUCKET}/{name}", recursive=True)
    return f"gs://{BUCKET}/{name}"


def test_planner_reads_headers_by_ranges_and_nothing_else(
    tiny_wan: Path, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(tiny_wan)
    use(recording, monkeypatch)
    checks.assert_read_alike(url, tiny_wan)
    for file in checks.weight_files(tiny_wan):
        sent = [
            one.num_body_bytes
            for one in recording.passed
            if one.status == 206 and one.path.endswith(str(file.relative_to(tiny_wan)))
        ]
        assert sum(sent) == checks.header_bytes(file)
    whole = [one for one in recording.passed if one.path.startswith("/download/") and one.status != 206]
    assert whole == []


def test_fetch_takes_every_byte_once(
    tiny_wan: Path, recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = upload(tiny_wan)
    use(recording, monkeypatch)
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), tiny_wan)
    sent = sum(one.num_body_bytes for one in recording.passed if one.path.startswith("/download/"))
    assert sent == sum(file.stat().st_size for file in tiny_wan.rglob("*") if file.is_file())


def test_plan_command_needs_the_environment_only(tiny_wan: Path, environment: dict[str, str]) -> None:
    url = upload(tiny_wan)
    checks.assert_planned(checks.plan_by_command(url, environment), url)


@pytest.mark.parametrize(
    "read", [read_checkpoint, lambda url: checks.fetch(url, Path("unused"))], ids=["plan", "fetch"]
)
def test_bucket_or_folder_that_is_not_there_is_named(read: Callable[[str], Any]) -> None:
    for url in ("gs://no-such-bucket/wan", f"gs://{BUCKET}/no-such-folder"):
        with pytest.raises(
            (CheckpointError, LoadError), match=re.escape(url) + ".*no file can be seen.*check the addr"
        ):
            read(url)


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize(
    "read", [read_checkpoint, lambda url: checks.fetch(url, Path("unused"))], ids=["plan", "fetch"]
)
def test_refused_accounts_are_told_what_is_needed(
    read: Callable[[str], Any], status: int, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator knows no accounts: the refusals are laid into the way, in the service's own form."""
    use(recording, monkeypatch)
    recording.instead = lambda method, path: (status, REFUSALS[status])
    with pytest.raises(
        (CheckpointError, LoadError), match=r"gs://models/wan.*set GOOGLE_APPLICATION_CREDENTIALS"
    ) as caught:
        read("gs://models/wan")
    assert "does not have storage.objects.get access" in str(caught.value)


def test_torn_weights_are_named_by_their_address(tiny_wan: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_wan, tmp_path / "wan"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    url = upload(folder)
    for read in (read_checkpoint, lambda url: checks.fetch(url, tmp_path / "cache")):
        with pytest.raises(
            (CheckpointError, LoadError), match=re.escape(f"{url}/vae/{file.name}") + ".*(torn|truncated)"
        ):
            read(url)
    checks.assert_nothing_kept(tmp_path / "cache")


def test_upload_anew_is_another_checkpoint(tiny_wan: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_wan, tmp_path / "wan"))
    url = upload(folder)
    before, fetched = read_checkpoint(url), checks.fetch(url, tmp_path / "cache")
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace("{", '{"changed": true,', 1))
    path = f"{url.removeprefix('gs://')}/vae/config.json"
    gcsfs.GCSFileSystem(skip_instance_cache=True).pipe_file(path, config.read_bytes())
    assert read_checkpoint(url).fingerprint != before.fingerprint
    again = checks.fetch(url, tmp_path / "cache")
    assert again != fetched
    checks.assert_fetched_alike(again, folder)
