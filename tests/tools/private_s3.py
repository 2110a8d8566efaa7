"""A server that speaks S3, as a process: `pip install heliograph[s3-test]`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools.private_http_server import private_http_server

ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def private_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the server on a free port of loopback.

    Yields:
        the environment by which clients find it.
    """

    def arguments(host: str, port: int) -> list[str]:
        return ["-m", "moto.server", "-H", host, "-p", str(port)]

    with private_http_server(arguments, log=folder / "s3.log", environment=ACCESS) as url:
        yield {**ACCESS, "AWS_ENDPOINT_URL": url}
