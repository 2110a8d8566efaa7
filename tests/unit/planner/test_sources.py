"""Checkpoints behind URLs: only headers travel, and servers that cannot do that are refused in plain words."""

import re
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from planner.checkpoint import read_checkpoint
from planner.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from planner.remote_files import read_range
from planner.source_errors import explain_source_error
from tests.unit.planner.checkpoints import blocks, write_json, write_safetensors, write_wan
from tests.unit.planner.http_server import Behaviour, serve_folder

FEW_KILOBYTES = 8 * 1024
MANY_BYTES = 50 * 2**20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two transformers of 20 blocks of 4 MiB (one of them in two shards with an index), sparse on the disk."""
    folder = write_wan(tmp_path / "wan", num_layers=20, width=1024, two_transformers=True)
    part = folder / "transformer_2"
    (part / "diffusion_pytorch_model.safetensors").unlink()
    shards = {"a-1.safetensors": blocks("blocks", 2, width=1024), "a-2.safetensors": {"blocks.2.w": (1024, 1024)}}
    for name, shapes in shards.items():
        write_safetensors(part / name, shapes)
    weight_map = {tensor: name for name, shapes in shards.items() for tensor in shapes}
    write_json(part / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": weight_map})
    return folder


def test_http_reads_headers_only(checkpoint: Path) -> None:
    expected = read_checkpoint(str(checkpoint))
    with serve_folder(checkpoint) as served:
        read = read_checkpoint(served.url)
    assert read.fingerprint == expected.fingerprint
    assert read.payload_bytes == expected.payload_bytes > MANY_BYTES
    weights = [name for name in served.body_bytes if name.endswith(".safetensors")]
    assert len(weights) == 5
    assert max(served.body_bytes.values()) < FEW_KILOBYTES
    assert served.total_bytes < 5 * FEW_KILOBYTES
    assert served.body_bytes["transformer/diffusion_pytorch_model.safetensors"] == _header_bytes(
        checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    )


@pytest.mark.parametrize("behaviour", ["no HEAD", "redirects"])
def test_http_servers_that_differ_are_read_alike(checkpoint: Path, behaviour: Behaviour) -> None:
    with serve_folder(checkpoint, behaviour=behaviour) as served:
        assert read_checkpoint(served.url).fingerprint == read_checkpoint(str(checkpoint)).fingerprint
        assert served.total_bytes < 6 * FEW_KILOBYTES


@pytest.mark.parametrize(
    ("behaviour", "offence"),
    [
        ("no ranges", "use a server that supports Range requests"),
        ("no length", "does not say how many bytes"),
        ("wrong range", "asked for bytes from 0"),
        ("redirects to a file", "Redirection to url"),
    ],
)
def test_http_server_without_ranges_is_refused_before_weights_travel(
    checkpoint: Path, behaviour: Behaviour, offence: str
) -> None:
    with (
        serve_folder(checkpoint, behaviour=behaviour) as served,
        pytest.raises(CheckpointNotFoundError, match=offence),
    ):
        read_checkpoint(served.url)
    # What a socket's buffers take before the connection is closed; not the file.
    assert served.total_bytes < 8 * 2**20 < MANY_BYTES


def test_http_errors_name_the_address(checkpoint: Path) -> None:
    with serve_folder(checkpoint) as served:
        with pytest.raises(CheckpointNotFoundError, match=r"no model_index\.json"):
            read_checkpoint(f"{served.url}/nothing")
        with pytest.raises(CheckpointNotFoundError, match="without"):
            read_checkpoint(f"{served.url}/x?token=1")
    with pytest.raises(CheckpointNotFoundError, match="cannot be reached"):
        read_checkpoint(served.url)


@pytest.mark.parametrize("url", ["https://x.test/sd.safetensors", "hf://a/b/x.gguf", "memory://x.ckpt", "s3://b/x.pth"])
def test_url_of_a_single_file_is_refused_with_advice(url: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="from_single_file"):
        read_checkpoint(url)


def test_truncated_file_behind_http_is_named(checkpoint: Path) -> None:
    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with serve_folder(checkpoint) as served, pytest.raises(CheckpointFormatError, match=r"vae/diffusion.*truncated"):
        read_checkpoint(served.url)


@pytest.fixture
def counting_memory(checkpoint: Path) -> Any:
    """`memory://hub/wan` holds the checkpoint; the fixture's list gets the bytes of each read."""
    memory = fsspec.filesystem("memory")
    memory.put(str(checkpoint), "/hub/wan", recursive=True)
    yield memory
    memory.rm("/hub", recursive=True)


def test_memory_url_reads_ranges_only(checkpoint: Path, counting_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = type(counting_memory).cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None, **keywords: Any) -> bytes:
        data: bytes = original(self, path, start=start, end=end, **keywords)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(type(counting_memory), "cat_file", counted)
    assert read_checkpoint("memory://hub/wan").fingerprint == read_checkpoint(str(checkpoint)).fingerprint
    assert max(sizes) < FEW_KILOBYTES
    assert sum(sizes) < 5 * FEW_KILOBYTES


class BufferedFile(fsspec.spec.AbstractBufferedFile):  # type: ignore[misc]
    """A file whose cache decides what is fetched, as the ones of `hf://` do."""

    fetched: list[int]

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fetched.append(end - start)
        data: bytes = self.fs.inner.cat_file(self.path, start=start, end=end)
        return data


class BufferedFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Has no range read of its own: fsspec's default opens a file, whose cache reads 5 MB ahead."""

    protocol = "buffered"
    cachable = False

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.inner = fsspec.filesystem("memory")

    def info(self, path: str, **_: Any) -> Any:
        return self.inner.info(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self.inner.ls(path, detail=detail)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> BufferedFile:
        return BufferedFile(self, path, mode=mode, **options)


@pytest.mark.usefixtures("counting_memory")
def test_file_system_without_range_reads_fetches_nothing_ahead(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    monkeypatch.setattr(BufferedFile, "fetched", fetched, raising=False)
    fsspec.register_implementation("buffered", BufferedFileSystem, clobber=True)
    assert read_checkpoint("buffered://hub/wan").fingerprint == read_checkpoint(str(checkpoint)).fingerprint
    assert sum(fetched) < 5 * FEW_KILOBYTES


def test_file_systems_own_errors_become_typed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def fail(*_: Any, **__: Any) -> Any:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", fail)
    with pytest.raises(CheckpointNotFoundError, match=r"memory://hub/x/model_index\.json .*credentials"):
        read_checkpoint("memory://hub/x")


@pytest.mark.parametrize(
    ("url", "package", "advice"),
    [("s3://bucket/x", "s3fs", "heliograph[s3]"), ("gs://bucket/x", "gcsfs", "heliograph[gcs]")],
)
def test_package_that_is_not_installed_is_named(
    url: str, package: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("s3", "gs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with pytest.raises(CheckpointError, match=re.escape(url)) as caught:
        read_checkpoint(url)
    assert package in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.usefixtures("counting_memory")
def test_single_file_in_a_remote_folder_is_named_with_advice() -> None:
    fsspec.filesystem("memory").pipe("/hub/single/sd.safetensors", b"12345678")
    with pytest.raises(CheckpointNotFoundError, match=r"sd\.safetensors.*from_single_file"):
        read_checkpoint("memory://hub/single")


def test_answers_longer_than_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores ranges would send gigabytes for each header."""
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, start, end: bytes(end + 1))
    with pytest.raises(OSError, match="does not answer ranges"):
        read_range(memory, "/x", offset=8, length=4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("403 for\n url https://x.test/a?X-Amz-Signature=abc", "OSError: 403 for url https://x.test/a"),
        ("no route to https://user:secret@x.test/a", "OSError: no route to https://x.test/a"),
        ("", "OSError"),
    ],
)
def test_errors_are_one_line_without_secrets(words: str, expected: str) -> None:
    assert explain_source_error(OSError(words), url="memory://x") == expected


def _header_bytes(file: Path) -> int:
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")
