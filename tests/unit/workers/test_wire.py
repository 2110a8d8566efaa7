import socket
import threading
from collections.abc import Iterator

import pytest

from workers.errors import DeadlineExceededError, GroupDiedError
from workers.wire import Wire, WireListener, connect, new_key


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    left, right = socket.socketpair()
    pair = Wire.__new__(Wire), Wire.__new__(Wire)
    for wire, end, peer in zip(pair, (left, right), ("right", "left"), strict=True):
        wire._socket, wire.peer = end, peer
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


def test_missed_deadline_is_an_error(wires: tuple[Wire, Wire]) -> None:
    with pytest.raises(DeadlineExceededError):
        wires[1].receive(lambda header, lengths: [], timeout_s=0.01)


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
