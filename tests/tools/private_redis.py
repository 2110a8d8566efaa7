"""A Redis of one test run: Debian's binary, a password, loopback, nothing on disk."""

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.local_serve import find_port

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class PrivateRedis:
    """Where it listens, and for whom."""

    address: str
    password: str


@contextmanager
def private_redis() -> Iterator[PrivateRedis]:
    """Starts a server; nothing of it is left afterwards.

    Raises:
        FileNotFoundError: Redis is not installed.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("this test needs Redis: apt-get install redis-server")
    port, password = find_port(_HOST, 0), secrets.token_hex(16)
    options = ["--bind", _HOST, "--port", str(port), "--requirepass", password, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([binary, *options], cwd="/tmp", stdout=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield PrivateRedis(f"{_HOST}:{port}", password)
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((_HOST, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
