"""A server as a process on a free port of loopback, for as long as a test needs it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deployments.local_serve import find_port

_START_TIMEOUT_S = 90


@contextmanager
def private_http_server(
    arguments: Callable[[str, int], Sequence[str]], *, log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Starts `python ARGUMENTS` and waits until it answers.

    Args:
        arguments: of Python, from host and port.

    Yields:
        the server's address.
    """
    port = find_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        command = [sys.executable, *arguments("127.0.0.1", port)]
        process = subprocess.Popen(command, env=os.environ | dict(environment), stdout=output, stderr=output)
    try:
        _wait_for(url, process, log)
        yield url
    finally:
        process.kill()
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"no answer from {url}: {log.read_text()}"
            time.sleep(0.1)
