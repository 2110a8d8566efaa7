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

from workers.errors import GroupDiedError

MAX_HEADER_BYTES = 16 << 20
MAX_BUFFERS = 65_536
DEFAULT_FRAME_TIMEOUT_S = 600.0
"""From a frame's first byte to its last, where the wait for the first has no limit."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4
"""An idle peer whose node vanished is noticed after 60 + 4 * 15 s; a probe a minute also keeps firewalls' tables."""

_PREFIX = struct.Struct("<II")
_TIMEVAL = struct.Struct("ll")
_READ_AHEAD_BYTES = 4096
_MAX_PARTS = 64
_encode_json = json.JSONEncoder(separators=(",", ":")).encode
_NONCE_BYTES = 32
_HANDSHAKE_TIMEOUT_S = 30.0

Header = dict[str, Any]
Buffer = bytearray | memoryview


def new_key() -> bytes:
    """A fresh random key for one group."""
    return secrets.token_bytes(32)


class Wire:
    """One authenticated connection. Not thread-safe: one thread sends and receives.

    A closed or reset peer raises `GroupDiedError` at once, a missed deadline or a frame that makes no sense likewise.
    After any of them a frame may have been cut, so the connection is closed and every later use raises too.

    The socket blocks and the kernel keeps the time (`SO_RCVTIMEO`, `SO_SNDTIMEO`): Python's own time-outs cost two more
    system calls for each operation.
    """

    def __init__(
        self, connection: socket.socket, *, peer: str, frame_timeout_s: float = DEFAULT_FRAME_TIMEOUT_S
    ) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(connection)
        self._socket = connection
        self._frame_timeout_s = frame_timeout_s
        self._armed_s: dict[int, float] = {}
        self._ahead = memoryview(bytearray(_READ_AHEAD_BYTES))
        self._first = self._last = 0  # what was read ahead and not taken yet
        self.peer = peer

    def send(self, header: Header, buffers: Sequence[memoryview] = (), *, timeout_s: float | None = None) -> None:
        """Sends one frame. `buffers` are contiguous bytes and are not copied."""
        encoded = _encode_json(header).encode()
        lengths = struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
        parts = [memoryview(_PREFIX.pack(len(encoded), len(buffers)) + lengths + encoded)]
        parts += [buffer.cast("B") for buffer in buffers if buffer.nbytes]
        try:
            self._send_all(parts, _deadline(timeout_s))
        except BaseException as error:
            raise self._end(error) from error

    def receive(
        self, make_buffers: Callable[[Header, list[int]], Sequence[Buffer]], *, timeout_s: float | None = None
    ) -> Header:
        """Receives one frame.

        Args:
            make_buffers: given the header and the buffers' lengths in bytes, returns writable memory of those lengths.
            timeout_s: until the whole frame is here; None waits for ever for its beginning (an idle follower), and
                `frame_timeout_s` from there to its end.
        """
        try:
            return self._receive_frame(make_buffers, _deadline(timeout_s))
        except BaseException as error:
            raise self._end(error) from error

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

    def has_hung_up(self) -> bool:
        """Whether the peer has closed the connection, or its process is gone; frames may still be unread.

        Never waits, and reads nothing: any thread may ask, whatever the owner does.
        """
        descriptor = self._socket.fileno()
        if descriptor < 0:
            return False  # closed at this end
        poll = select.poll()
        poll.register(descriptor, select.POLLRDHUP)
        try:
            return bool(poll.poll(0))
        except OSError:
            return False

    def fileno(self) -> int:
        """For `select` and `poll`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the connection; the peer sees it at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _end(self, error: BaseException) -> BaseException:
        """Closes the connection, whatever the error is, and says what to raise.

        What a frame says is checked where it is used: after any error there the two ends no longer agree.
        """
        self.close()
        if isinstance(error, GroupDiedError) or not isinstance(error, Exception):
            return error
        what = "the connection broke" if isinstance(error, OSError) else "a frame made no sense"
        return GroupDiedError(f"{self.peer}: {what}: {error!r}")

    def _receive_frame(
        self, make_buffers: Callable[[Header, list[int]], Sequence[Buffer]], deadline: float | None
    ) -> Header:
        if self._first == self._last:
            self._first, self._last = 0, self._receive_some([self._ahead], 0, deadline)
        deadline = deadline or _deadline(self._frame_timeout_s)
        header_length, num_buffers = _PREFIX.unpack(self._take(_PREFIX.size, deadline))
        if header_length > MAX_HEADER_BYTES or num_buffers > MAX_BUFFERS:
            raise GroupDiedError(f"{self.peer} sent a frame header of {header_length} bytes and {num_buffers} buffers")
        lengths = list(struct.unpack(f"<{num_buffers}Q", self._take(8 * num_buffers, deadline)))
        header: Header = json.loads(self._take(header_length, deadline))
        targets = [memoryview(target).cast("B") for target in make_buffers(header, lengths)]
        if [target.nbytes for target in targets] != lengths:
            raise ValueError(f"buffers of {lengths} bytes do not match their tensors")
        self._read_into([target for target in targets if target.nbytes], deadline)
        return header

    def _send_all(self, parts: list[memoryview], deadline: float | None) -> None:
        while parts:
            self._arm(socket.SO_SNDTIMEO, deadline, f"{self.peer} did not take a message in time")
            try:
                sent = self._socket.sendmsg(parts[:_MAX_PARTS])
            except BlockingIOError:
                continue
            _skip(parts, sent)

    def _take(self, length: int, deadline: float | None) -> bytes:
        """The next `length` bytes. Reads ahead, so that a frame's small beginning costs one system call."""
        if length > _READ_AHEAD_BYTES:
            data = bytearray(length)
            self._read_into([memoryview(data)], deadline)
            return bytes(data)
        while self._last - self._first < length:
            if self._first:
                rest = bytes(self._ahead[self._first : self._last])
                self._first, self._last = 0, len(rest)
                self._ahead[: self._last] = rest
            self._last += self._receive_some([self._ahead[self._last :]], 0, deadline)
        taken = bytes(self._ahead[self._first : self._first + length])
        self._first += length
        return taken

    def _read_into(self, views: list[memoryview], deadline: float | None) -> None:
        while views and self._first < self._last:
            count = min(self._last - self._first, views[0].nbytes)
            views[0][:count] = self._ahead[self._first : self._first + count]
            self._first += count
            _skip(views, count)
        while views:
            _skip(views, self._receive_some(views[:_MAX_PARTS], socket.MSG_WAITALL, deadline))

    def _receive_some(self, views: list[memoryview], flags: int, deadline: float | None) -> int:
        while True:
            self._arm(socket.SO_RCVTIMEO, deadline, f"{self.peer} did not answer in time")
            try:
                count = self._socket.recvmsg_into(views, 0, flags)[0]
            except BlockingIOError:  # the time that was armed is over; whether the deadline is too, `_arm` sees
                continue
            if count == 0:
                raise GroupDiedError(f"{self.peer} closed its connection")
            return count

    def _arm(self, option: int, deadline: float | None, too_late: str) -> None:
        """Has the kernel wait about until the deadline. Without one any time will do: the wait is taken up again."""
        if deadline is None:
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise GroupDiedError(too_late)
        if not 0.98 * left_s <= self._armed_s.get(option, 0.0) <= 1.02 * left_s:
            seconds, microseconds = divmod(max(int(1e6 * left_s), 1), 1_000_000)
            self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(seconds, microseconds))
            self._armed_s[option] = left_s


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


def _skip(views: list[memoryview], count: int) -> None:
    """Takes `count` bytes off the front of `views`, in place."""
    while views and count >= views[0].nbytes:
        count -= views.pop(0).nbytes
    if count:
        views[0] = views[0][count:]


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
