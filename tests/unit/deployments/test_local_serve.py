"""Ports: a chosen one must be free, and a free one must be none that the system gives away meanwhile."""

import socket
from pathlib import Path

import pytest

from deployments.errors import SettingsError
from deployments.local_serve import find_port


def test_a_port_somebody_listens_on_is_refused_by_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}"):
            find_port("127.0.0.1", port)


def test_a_free_port_is_below_those_that_the_system_gives_out() -> None:
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(20_000 <= find_port("127.0.0.1", 0) < first_ephemeral for _ in range(20))
