"""A private S3 server and a bucket on it, for the tests that ask for them."""

import os
import uuid
from collections.abc import Iterator

import pytest

_AWS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment by which clients find the server. One process for all tests of a session."""
    pytest.importorskip("s3fs", reason="pip install heliograph[s3-test]")
    pytest.importorskip("moto.server", reason="pip install heliograph[s3-test]")
    from tests.tools.private_s3 import private_s3

    with private_s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def bucket(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket's name. The environment says where it is."""
    import s3fs

    for name in _AWS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield name
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    s3fs.S3FileSystem.clear_instance_cache()
