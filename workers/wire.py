"""Framed messages between the leader and a follower: a TCP socket, a JSON header, raw buffers behind it.

Frame: `uint32` header length, `uint32` number of buffers, `uint64` length of each buffer (all little-endian), header
(JSON, UTF-8), buffers. Nothing is unpickled, so a peer can at worst send wrong numbers; and no byte of a frame is read
before the peer has proved that it knows the group's key.
"""

import contextlib
import hmac
import json
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from workers.errors import DeadlineExceededError, GroupDiedError

MAX_HEADER_BYTES = 16 << 20
MAX_BUFFERS = 65_536
_PREFIX = struct.Struct("<II")
_NONCE_BYTES = 32
_HANDSHAKE_TIMEOUT_S = 30.0

Header = dict[str, Any]
Buffer = bytearray | memoryview


def new_key() -> bytes:
    """A fresh random key for one group."""
    return secrets.token_bytes(32)


class Wire:
    """One authenticated connection. Not thread-safe: one thread sends and receives.

    A closed or reset peer raises `GroupDiedError` at once, a missed deadline `DeadlineExceededError`; after either the
    connection must not be used again, since a frame may have been cut.
    """

    def __init__(self, connection: socket.socket, *, peer: str) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = connection
        self.peer = peer

    def send(self, header: Header, buffers: Sequence[memoryview] = (), *, timeout_s: float | None = None) -> None:
        """Sends one frame. `buffers` are contiguous bytes and are not copied."""
        encoded = json.dumps(header, separators=(",", ":")).encode()
        lengths = struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
        parts = [memoryview(_PREFIX.pack(len(encoded), len(buffers)) + lengths + encoded)]
        parts += [buffer.cast("B") for buffer in buffers if buffer.nbytes]
        self._send_all(parts, _deadline(timeout_s))

    def receive(
        self, make_buffers: Callable[[Header, list[int]], Sequence[Buffer]], *, timeout_s: float | None = None
    ) -> Header:
        """Receives one frame.

        Args:
            make_buffers: given the header and the buffers' lengths in bytes, returns writable memory of those lengths.
            timeout_s: until the whole frame is here; None waits for ever (an idle follower).
        """
        deadline = _deadline(timeout_s)
        header_length, num_buffers = _PREFIX.unpack(self._read(_PREFIX.size, deadline))
        if header_length > MAX_HEADER_BYTES or num_buffers > MAX_BUFFERS:
            raise GroupDiedError(f"{self.peer} sent a frame header of {header_length} bytes and {num_buffers} buffers")
        lengths = list(struct.unpack(f"<{num_buffers}Q", self._read(8 * num_buffers, deadline)))
        header: Header = json.loads(bytes(self._read(header_length, deadline)))
        targets = make_buffers(header, lengths)
        for target, length in zip(targets, lengths, strict=True):
            if length:
                self._read_into(memoryview(target).cast("B"), deadline)
        return header

    def peek_header(self, length: int) -> bytes | None:
        """First bytes (up to `length`) of the header of a frame that is here already; None if none is. Never waits.

        It leaves the frame unread, so another thread may call it while the owner neither sends nor receives.

        Raises:
            GroupDiedError: the peer has closed the connection.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(0):
            return None
        try:
            start = self._socket.recv(_PREFIX.size, socket.MSG_PEEK)
            if len(start) < _PREFIX.size:
                if start:
                    return None
                raise GroupDiedError(f"{self.peer} closed its connection")
            skipped = _PREFIX.size + 8 * _PREFIX.unpack(start)[1]
            return self._socket.recv(skipped + length, socket.MSG_PEEK)[skipped:]
        except OSError as error:
            raise GroupDiedError(f"the connection to {self.peer} broke: {error}") from error

    def fileno(self) -> int:
        """For `select` and `poll`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the connection; the peer sees it at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send_all(self, parts: list[memoryview], deadline: float | None) -> None:
        while parts:
            self._apply(deadline)
            try:
                sent = self._socket.sendmsg(parts[:64])
            except TimeoutError as error:
                raise DeadlineExceededError(f"{self.peer} did not take a message in time") from error
            except OSError as error:
                raise GroupDiedError(f"the connection to {self.peer} broke: {error}") from error
            while parts and sent >= parts[0].nbytes:
                sent -= parts.pop(0).nbytes
            if sent:
                parts[0] = parts[0][sent:]

    def _read(self, length: int, deadline: float | None) -> bytearray:
        data = bytearray(length)
        if length:
            self._read_into(memoryview(data), deadline)
        return data

    def _read_into(self, view: memoryview, deadline: float | None) -> None:
        while view.nbytes:
            self._apply(deadline)
            try:
                count = self._socket.recv_into(view)
            except TimeoutError as error:
                raise DeadlineExceededError(f"{self.peer} did not answer in time") from error
            except OSError as error:
                raise GroupDiedError(f"the connection to {self.peer} broke: {error}") from error
            if count == 0:
                raise GroupDiedError(f"{self.peer} closed its connection")
            view = view[count:]

    def _apply(self, deadline: float | None) -> None:
        self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-6))


class WireListener:
    """The leader's end: accepts the followers of one group, then closes its port."""

    def __init__(self, host: str, key: bytes) -> None:
        self._key = key
        self._socket = socket.create_server((host, 0), backlog=64)
        self.address: tuple[str, int] = (host, self._socket.getsockname()[1])

    def accept(self, num_followers: int, *, timeout_s: float) -> dict[int, Wire]:
        """Accepts until `num_followers` ranks have proved themselves; returns them by world rank."""
        deadline = time.monotonic() + timeout_s
        wires: dict[int, Wire] = {}
        while len(wires) < num_followers:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-6))
            try:
                connection, _ = self._socket.accept()
            except TimeoutError as error:
                present = sorted(wires)
                raise GroupDiedError(f"only ranks {present} of {num_followers} followers connected in time") from error
            world_rank = _prove_listener(connection, self._key)
            if world_rank is None or world_rank in wires:
                connection.close()  # a stranger: not ours to answer
                continue
            wires[world_rank] = Wire(connection, peer=f"rank {world_rank}")
        return wires

    def close(self) -> None:
        self._socket.close()


def connect(address: tuple[str, int], key: bytes, *, world_rank: int, timeout_s: float) -> Wire:
    """The follower's end of `WireListener.accept`."""
    connection = socket.create_connection(address, timeout=timeout_s)
    connection.sendall(struct.pack("<I", world_rank))
    nonce = _read_exactly(connection, _NONCE_BYTES)
    own_nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(_proof(key, b"follower", nonce, world_rank) + own_nonce)
    if not hmac.compare_digest(_read_exactly(connection, 32), _proof(key, b"leader", own_nonce, world_rank)):
        connection.close()
        raise GroupDiedError(f"the leader at {address[0]}:{address[1]} does not know this group's key")
    return Wire(connection, peer="the leader")


def _prove_listener(connection: socket.socket, key: bytes) -> int | None:
    connection.settimeout(_HANDSHAKE_TIMEOUT_S)
    try:
        (world_rank,) = struct.unpack("<I", _read_exactly(connection, 4))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        connection.sendall(nonce)
        answer = _read_exactly(connection, 32 + _NONCE_BYTES)
        if not hmac.compare_digest(answer[:32], _proof(key, b"follower", nonce, world_rank)):
            return None
        connection.sendall(_proof(key, b"leader", answer[32:], world_rank))
    except (OSError, GroupDiedError):
        return None
    return int(world_rank)


def _proof(key: bytes, role: bytes, nonce: bytes, world_rank: int) -> bytes:
    return hmac.digest(key, role + struct.pack("<I", world_rank) + nonce, "sha256")


def _read_exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = connection.recv(length - len(data))
        if not chunk:
            raise GroupDiedError("the peer closed its connection during the handshake")
        data += chunk
    return data


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
