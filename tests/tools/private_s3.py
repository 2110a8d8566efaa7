"""A server that speaks S3, as a process: `pip install heliograph[s3-test]`."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.local_serve import find_port

_START_TIMEOUT_S = 90
ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def private_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the server on a free port of loopback.

    Yields:
        the environment by which clients find it.
    """
    port = find_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    with (folder / "s3.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, env=os.environ | ACCESS, stdout=log, stderr=log)
    try:
        _wait_for(url, process, folder / "s3.log")
        yield {**ACCESS, "AWS_ENDPOINT_URL": url}
    finally:
        process.kill()
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"no answer from {url}: {log.read_text()}"
            time.sleep(0.1)
