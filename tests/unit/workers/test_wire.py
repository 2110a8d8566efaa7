import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from workers.errors import GroupDiedError
from workers.wire import Wire, WireListener, connect, new_key

FRAME_TIMEOUT_S = 0.2


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    listener = socket.create_server(("127.0.0.1", 0))
    left = socket.create_connection(listener.getsockname())
    right, _ = listener.accept()
    listener.close()
    pair = (
        Wire(left, peer="right", frame_timeout_s=FRAME_TIMEOUT_S),
        Wire(right, peer="left", frame_timeout_s=FRAME_TIMEOUT_S),
    )
    yield pair
    for wire in pair:
        wire.close()


def test_frame_arrives_with_its_buffers(wires: tuple[Wire, Wire]) -> None:
    received: list[bytearray] = []

    def make_buffers(header: dict[str, object], lengths: list[int]) -> list[bytearray]:
        received.extend(bytearray(length) for length in lengths)
        return received

    payload = bytes(range(256)) * 4096
    sender = threading.Thread(
        target=wires[0].send, args=({"op": "call", "é": 1.5}, [memoryview(payload), memoryview(b""), memoryview(b"x")])
    )
    sender.start()
    header = wires[1].receive(make_buffers, timeout_s=10.0)
    sender.join()
    assert header == {"op": "call", "é": 1.5}
    assert [bytes(buffer) for buffer in received] == [payload, b"", b"x"]


def test_closed_peer_is_seen_at_once(wires: tuple[Wire, Wire]) -> None:
    wires[0].close()
    with pytest.raises(GroupDiedError, match="left closed its connection"):
        wires[1].receive(lambda header, lengths: [], timeout_s=None)


def test_a_missed_deadline_is_the_end_of_the_connection(wires: tuple[Wire, Wire]) -> None:
    with pytest.raises(GroupDiedError, match="did not answer in time"):
        wires[1].receive(lambda header, lengths: [], timeout_s=0.01)
    with pytest.raises(GroupDiedError, match="broke"):
        wires[1].receive(lambda header, lengths: [], timeout_s=10.0)
    with pytest.raises(GroupDiedError, match="closed its connection"):
        wires[0].receive(lambda header, lengths: [], timeout_s=10.0)


@pytest.mark.parametrize("num_bytes", [3, 30], ids=["in_the_prefix", "in_the_header"])
def test_a_frame_that_stops_in_the_middle_misses_its_deadline(wires: tuple[Wire, Wire], num_bytes: int) -> None:
    frame = struct.pack("<II", 100, 0) + b" " * 100
    wires[0]._socket.sendall(frame[:num_bytes])
    with pytest.raises(GroupDiedError, match="did not answer in time"):
        wires[1].receive(lambda header, lengths: [], timeout_s=None)


def test_a_frame_whose_buffers_stop_in_the_middle_misses_its_deadline(wires: tuple[Wire, Wire]) -> None:
    wires[0]._socket.sendall(struct.pack("<IIQ", 2, 1, 1 << 20) + b"{}" + b"x" * 1000)
    with pytest.raises(GroupDiedError, match="did not answer in time"):
        wires[1].receive(lambda header, lengths: [bytearray(length) for length in lengths], timeout_s=None)


def test_a_peer_that_takes_nothing_misses_the_senders_deadline(wires: tuple[Wire, Wire]) -> None:
    with pytest.raises(GroupDiedError, match="did not take a message in time"):
        wires[0].send({}, [memoryview(bytearray(64 << 20))], timeout_s=0.1)


@pytest.mark.parametrize("header", [b"{", b"\xff\xff"], ids=["no_json", "no_utf8"])
def test_a_garbled_frame_is_the_end_of_the_connection(wires: tuple[Wire, Wire], header: bytes) -> None:
    wires[0]._socket.sendall(struct.pack("<II", len(header), 0) + header)
    with pytest.raises(GroupDiedError, match="made no sense"):
        wires[1].receive(lambda header, lengths: [], timeout_s=1.0)
    with pytest.raises(GroupDiedError):
        wires[1].send({})


def test_buffers_of_other_lengths_than_announced_are_refused(wires: tuple[Wire, Wire]) -> None:
    wires[0].send({}, [memoryview(b"xx")])
    with pytest.raises(GroupDiedError, match="do not match"):
        wires[1].receive(lambda header, lengths: [bytearray(3)], timeout_s=1.0)


def test_frames_in_one_segment_come_one_by_one(wires: tuple[Wire, Wire]) -> None:
    """What was read ahead belongs to the next frame; lengths around the read-ahead buffer's own."""
    lengths = [0, 1, 4000, 4090, 4096, 5000, 3, 20_000]
    payloads = [bytes([index]) * length for index, length in enumerate(lengths)]
    for payload in payloads:
        wires[0].send({"n": len(payload), "pad": "p" * len(payload)}, [memoryview(payload)])
    for payload in payloads:
        received = bytearray(len(payload))
        header = wires[1].receive(lambda header, lengths, target=received: [target], timeout_s=5.0)
        assert header["n"] == len(payload)
        assert received == payload


def test_an_idle_connection_is_probed_and_its_end_noticed_within_minutes(wires: tuple[Wire, Wire]) -> None:
    for wire in wires:
        connection = wire._socket
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle_s, interval_s, probes = (
            connection.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle_s <= 60  # firewalls drop what is silent for longer, some after five minutes
        assert idle_s + interval_s * probes <= 180


def test_an_idle_wait_outlasts_every_deadline_before_it(wires: tuple[Wire, Wire]) -> None:
    """The kernel still has the last frame's time when the next, unlimited wait begins."""
    wires[0].send({"n": 1})
    wires[1].receive(lambda header, lengths: [], timeout_s=0.05)
    received: list[object] = []
    waiting = threading.Thread(
        target=lambda: received.append(wires[1].receive(lambda header, lengths: [], timeout_s=None)), daemon=True
    )
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive()
    wires[0].send({"n": 2})
    waiting.join(timeout=10.0)
    assert received == [{"n": 2}]


def test_oversized_header_is_refused_before_it_is_read(wires: tuple[Wire, Wire]) -> None:
    wires[0]._socket.sendall(b"\xff" * 8)
    with pytest.raises(GroupDiedError, match="frame header"):
        wires[1].receive(lambda header, lengths: [], timeout_s=1.0)


def test_stranger_without_the_key_is_turned_away_and_the_follower_still_gets_in() -> None:
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    outcomes: list[object] = []

    def join() -> None:
        try:
            connect(listener.address, new_key(), world_rank=1, timeout_s=5.0)
        except GroupDiedError as error:
            outcomes.append(error)
        outcomes.append(connect(listener.address, key, world_rank=1, timeout_s=5.0))

    thread = threading.Thread(target=join)
    thread.start()
    wires = listener.accept(1, timeout_s=10.0)
    thread.join()
    listener.close()
    assert list(wires) == [1]
    assert isinstance(outcomes[0], GroupDiedError)
    assert isinstance(outcomes[1], Wire)


def test_missing_follower_is_named() -> None:
    listener = WireListener("127.0.0.1", new_key())
    with pytest.raises(GroupDiedError, match=r"only ranks \[\] of 1"):
        listener.accept(1, timeout_s=0.01)
    listener.close()
