"""A server that speaks Google Cloud Storage, as a process: `pip install heliograph[gcs-test]`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools.private_http_server import private_http_server

BUCKET = "models"


@contextmanager
def private_gcs(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the server, with one bucket, on a free port of loopback.

    Yields:
        the environment by which clients find it.
    """

    def arguments(host: str, port: int) -> list[str]:
        return [
            "-m", "gcp_storage_emulator", "start", f"--host={host}", f"--port={port}", "--in-memory",
            f"--default-bucket={BUCKET}",
        ]  # fmt: skip

    with private_http_server(arguments, log=folder / "gcs.log", environment={}) as url:
        yield {"STORAGE_EMULATOR_HOST": url}
