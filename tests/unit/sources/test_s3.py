"""Checkpoints in a bucket, by the real client, from a server that speaks S3 over HTTP."""

import asyncio
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from planner.checkpoint import read_checkpoint
from planner.errors import CheckpointError
from tests.tools.recording_proxy import Outcome, Recording, recording_proxy
from tests.unit.sources import remote_checks as checks
from workers.errors import LoadError

FLAWS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights are missing": (
        lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "/wan/vae has no weights",
    ),
    "index is missing": (lambda folder: (folder / "model_index.json").unlink(), "/wan has no model_index.json"),
    "weights are torn": (
        lambda folder: os.truncate(folder / "vae" / "diffusion_pytorch_model.safetensors", 30_000),
        "/wan/vae/diffusion_pytorch_model.safetensors.*(truncated|torn)",
    ),
}


def client() -> Any:
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True)


def upload(folder: Path, bucket: str, name: str = "wan") -> str:
    client().put(f"{folder}/", f"{bucket}/{name}", recursive=True)
    return f"s3://{bucket}/{name}"


@pytest.fixture
def copy(tiny_wan: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that may be spoilt."""
    return Path(shutil.copytree(tiny_wan, tmp_path / "wan"))


@pytest.fixture
def recording(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """What readers ask the server for, from now on; `bucket` is still there."""
    with recording_proxy(os.environ["AWS_ENDPOINT_URL"]) as recorded:
        yield recorded


def use(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", recording.url)


def test_planner_reads_headers_by_ranges_and_nothing_else(
    tiny_wan: Path, bucket: str, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(tiny_wan, bucket)
    use(recording, monkeypatch)
    checks.assert_read_alike(url, tiny_wan)
    weights = checks.weight_files(tiny_wan)
    assert len(weights) == 3
    for file in weights:
        assert recording.body_bytes(f"{file.relative_to(tiny_wan)}") == checks.header_bytes(file)
    gets = [one for one in recording.passed if one.method == "GET" and one.path.endswith(".safetensors")]
    assert {one.status for one in gets} == {206}


def test_fetch_takes_every_byte_once_over_several_connections(
    tiny_wan: Path, bucket: str, recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = upload(tiny_wan, bucket)
    use(recording, monkeypatch)
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), tiny_wan)
    for file in checks.weight_files(tiny_wan):
        assert recording.body_bytes(f"{file.relative_to(tiny_wan)}") == file.stat().st_size
    assert recording.most_at_once > 1
    num_requests = len(recording.passed)
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), tiny_wan)
    assert not [one for one in recording.passed[num_requests:] if one.path.endswith(".safetensors")]


@pytest.mark.full
def test_plan_command_needs_the_environment_only(tiny_wan: Path, bucket: str, s3_server: dict[str, str]) -> None:
    url = upload(tiny_wan, bucket)
    checks.assert_planned(checks.plan_by_command(url, s3_server), url)
    without = {"AWS_ENDPOINT_URL": s3_server["AWS_ENDPOINT_URL"], "AWS_EC2_METADATA_DISABLED": "true"}
    refused = checks.plan_by_command(url, without)
    assert refused.returncode == 2, refused.stderr
    assert "set AWS_ACCESS_KEY_ID" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.full
@pytest.mark.parametrize("flaw", FLAWS)
def test_flawed_checkpoint_is_named_by_planner_and_fetch(flaw: str, copy: Path, bucket: str, tmp_path: Path) -> None:
    spoil, message = FLAWS[flaw]
    spoil(copy)
    url = upload(copy, bucket)
    with pytest.raises(CheckpointError, match=f"s3://{bucket}{message}"):
        read_checkpoint(url)
    if flaw == "weights are missing":  # without an index only the planner knows that they should be there
        return
    with pytest.raises(LoadError, match=f"s3://{bucket}{message}"):
        checks.fetch(url, tmp_path / "cache")
    checks.assert_nothing_kept(tmp_path / "cache")


@pytest.mark.full
@pytest.mark.parametrize(
    "read", [read_checkpoint, lambda url: checks.fetch(url, Path("unused"))], ids=["plan", "fetch"]
)
def test_bucket_that_is_not_there_is_named(read: Callable[[str], Any], bucket: str) -> None:
    with pytest.raises(
        (CheckpointError, LoadError), match=r"s3://no-such-bucket/wan.*no such bucket.*AWS_ENDPOINT_URL"
    ):
        read("s3://no-such-bucket/wan")


@pytest.mark.full
@pytest.mark.parametrize(
    "read", [read_checkpoint, lambda url: checks.fetch(url, Path("unused"))], ids=["plan", "fetch"]
)
def test_server_that_does_not_answer_is_named(
    read: Callable[[str], Any], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(
        (CheckpointError, LoadError), match=f"s3://{bucket}/wan.*check the network and AWS_ENDPOINT_URL"
    ):
        read(f"s3://{bucket}/wan")


@pytest.fixture
def reader_key(s3_server: dict[str, str], bucket: str) -> Iterator[tuple[str, str]]:
    """Key and secret of an account that may read; from now on the server refuses all others."""
    import boto3

    iam = boto3.client("iam", endpoint_url=s3_server["AWS_ENDPOINT_URL"])
    iam.create_user(UserName="reader")
    policy = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", '
        '"Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]}'
    )
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    yield key["AccessKeyId"], key["SecretAccessKey"]
    _allow_unknown_requests(s3_server, "Infinity")


def _allow_unknown_requests(s3_server: dict[str, str], count: str) -> None:
    """After so many requests the server checks keys, signatures and rights."""
    address = f"{s3_server['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(address, data=count.encode(), method="POST", headers=headers)
    urllib.request.urlopen(request, timeout=20).close()


@pytest.mark.full
def test_wrong_credentials_are_told_from_right_ones(
    tiny_wan: Path,
    bucket: str,
    s3_server: dict[str, str],
    reader_key: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    url = upload(tiny_wan, bucket)
    _allow_unknown_requests(s3_server, "0")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", reader_key[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for read in (read_checkpoint, lambda url: checks.fetch(url, tmp_path / "cache")):
        with pytest.raises((CheckpointError, LoadError), match=re.escape(url) + ".*set AWS_ACCESS_KEY_ID"):
            read(url)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", reader_key[1])
    checks.assert_read_alike(url, tiny_wan)
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), tiny_wan)


@pytest.mark.full
def test_connections_that_break_are_named_and_leave_nothing(
    tiny_wan: Path, bucket: str, recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = upload(tiny_wan, bucket)
    use(recording, monkeypatch)
    recording.before = lambda method, path: "cut" if path.endswith(".safetensors") else "pass"
    with pytest.raises(LoadError, match=re.escape(url) + r"/\w+/\S+\.safetensors cannot be read at byte"):
        checks.fetch(url, tmp_path / "cache")
    checks.assert_nothing_kept(tmp_path / "cache")
    recording.before = lambda method, path: "pass"
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), tiny_wan)


@pytest.mark.full
def test_upload_in_the_middle_of_a_fetch_is_not_mixed_in(
    copy: Path, bucket: str, recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = upload(copy, bucket)
    direct = client()
    direct.ls(bucket)  # it connects to the server itself, before readers are led through the proxy
    use(recording, monkeypatch)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    changed = weights.read_bytes()[:-4] + b"\1\2\3\4"

    def replace_weights(method: str, path: str) -> Outcome:
        if path.endswith(f"vae/{weights.name}") and method == "GET" and weights.read_bytes() != changed:
            weights.write_bytes(changed)
            direct.pipe_file(f"{bucket}/wan/vae/{weights.name}", changed)
        return "pass"

    recording.before = replace_weights
    with pytest.raises(LoadError, match=f"{url} was changed while it was fetched.*vae/{weights.name}"):
        checks.fetch(url, tmp_path / "cache")
    checks.assert_nothing_kept(tmp_path / "cache")
    checks.assert_fetched_alike(checks.fetch(url, tmp_path / "cache"), copy)


@pytest.mark.full
def test_what_was_listed_before_is_not_trusted_later(copy: Path, bucket: str, tmp_path: Path) -> None:
    """The planner's process lives for long; a checkpoint that is uploaded anew is another one."""
    url = upload(copy, bucket)
    before, fetched = read_checkpoint(url), checks.fetch(url, tmp_path / "cache")
    config = copy / "vae" / "config.json"
    config.write_text(config.read_text().replace("{", '{"changed": true,', 1))
    upload(copy, bucket)
    checks.assert_read_alike(url, copy)
    assert read_checkpoint(url).fingerprint != before.fingerprint
    again = checks.fetch(url, tmp_path / "cache")
    assert again != fetched
    checks.assert_fetched_alike(again, copy)


@pytest.mark.full
def test_readers_in_threads_and_in_an_event_loop_do_not_disturb_one_another(
    tiny_wan: Path, bucket: str, tmp_path: Path
) -> None:
    urls = [upload(tiny_wan, bucket, f"wan-{number}") for number in range(3)]

    async def read_in_loop() -> None:
        for url in urls:
            checks.assert_read_alike(url, tiny_wan)  # as a Serve builder may: without leaving the loop's thread
        checks.assert_fetched_alike(checks.fetch(urls[0], tmp_path / "loop"), tiny_wan)

    with ThreadPoolExecutor(6) as pool:
        fetches = [pool.submit(checks.fetch, url, tmp_path / f"cache-{i}") for i in range(2) for url in urls]
        reads = [pool.submit(checks.assert_read_alike, url, tiny_wan) for url in urls]
        asyncio.run(read_in_loop())
        for future in fetches:
            checks.assert_fetched_alike(future.result(timeout=120), tiny_wan)
        for read in reads:
            read.result(timeout=120)
