"""What the leader finds out about its followers while it is inside a call itself. Real sockets, no processes."""

import queue
import threading
from collections.abc import Iterator

import pytest
import torch

from workers import call_watch
from workers.call_watch import CallWatch
from workers.component_call import ComponentCall, LocalComponent
from workers.errors import CallError, GroupDiedError
from workers.lanes import LaneLayout, Lanes, describe_error
from workers.link import Link, TensorRoute
from workers.wire import Wire, WireListener, connect, new_key

CPU = torch.device("cpu")
ERROR = describe_error(RuntimeError("made to fail"), component="transformer", call_id=1)


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    """The leader's end and the follower's."""
    key = new_key()
    listener = WireListener("127.0.0.1", key)
    connected: queue.SimpleQueue[Wire] = queue.SimpleQueue()
    thread = threading.Thread(
        target=lambda: connected.put(connect(listener.address, key, world_rank=1, timeout_s=10.0)), daemon=True
    )
    thread.start()
    leader = listener.accept(1, timeout_s=10.0)[1]
    follower = connected.get(timeout=10.0)
    listener.close()
    yield leader, follower
    leader.close()
    follower.close()


class Watched:
    """A watch and what it reported."""

    def __init__(self, *, timeout_s: float = 60.0, failure_grace_s: float = 0.3) -> None:
        self.deaths: queue.SimpleQueue[GroupDiedError] = queue.SimpleQueue()
        self.timeout_s = timeout_s
        self.watch = CallWatch(failure_grace_s=failure_grace_s, on_death=self.deaths.put)

    def stay_in_call(self, wire: Wire) -> str:
        """Stays inside a call until the group is declared dead; returns why."""
        with pytest.raises(GroupDiedError) as caught, self.watch.during({1: wire}, timeout_s=self.timeout_s):
            told = self.deaths.get(timeout=30.0)
        assert caught.value is told
        return str(told)


def test_a_peeked_frame_is_still_there(ends: tuple[Wire, Wire]) -> None:
    leader, follower = ends
    assert leader.peek_header(16) is None
    follower.send({"op": "error", "id": 7}, [memoryview(b"abc")])
    assert leader.receive(lambda _, __: [bytearray(3)], timeout_s=10.0) == {"op": "error", "id": 7}
    follower.send(ERROR, [memoryview(b"abc")])
    while (start := leader.peek_header(16)) is None:
        pass
    assert start == b'{"op":"error","i'
    assert leader.receive(lambda _, __: [bytearray(3)], timeout_s=10.0) == ERROR
    assert leader.peek_header(16) is None


def test_an_error_of_a_follower_ends_a_call_that_the_leader_does_not_end(ends: tuple[Wire, Wire]) -> None:
    leader, follower = ends
    follower.send(ERROR)
    assert "a call failed on rank 1 alone" in Watched().stay_in_call(leader)


def test_a_follower_that_goes_away_ends_the_call_at_once(ends: tuple[Wire, Wire]) -> None:
    leader, follower = ends
    follower.close()
    assert "rank 1 closed its connection" in Watched(failure_grace_s=1000.0).stay_in_call(leader)


def test_a_call_that_takes_too_long_is_a_dead_group(ends: tuple[Wire, Wire]) -> None:
    assert "did not end within 0.5 s" in Watched(timeout_s=0.5).stay_in_call(ends[0])


def test_the_leaders_own_part_has_the_same_deadline() -> None:
    watched = Watched()
    with pytest.raises(GroupDiedError, match="a call did not end within"), watched.watch.during({}, timeout_s=0.3):
        watched.deaths.get(timeout=30.0)


def test_a_request_that_outlives_its_time_between_calls_is_a_dead_group() -> None:
    watched = Watched()
    with watched.watch.during_request({}, 0.3):
        with watched.watch.during({}, timeout_s=1000.0):
            pass
        assert "a request did not end within 0.3 s" in str(watched.deaths.get(timeout=30.0))


def test_a_peer_that_goes_away_is_seen_while_the_leader_is_stuck_between_calls(ends: tuple[Wire, Wire]) -> None:
    """As on a GPU: the last call has been answered, its result has not come, and the leader asks for a value."""
    leader, follower = ends
    watched = Watched()
    with watched.watch.during_request({1: leader}, None):
        with watched.watch.during({}, timeout_s=1000.0):
            follower.send({"op": "done", "id": 1})
        follower.close()
        assert "rank 1 is gone" in str(watched.deaths.get(timeout=30.0))
        assert leader.receive(lambda _, __: [], timeout_s=10.0) == {"op": "done", "id": 1}


def test_a_connection_that_the_leader_has_given_up_itself_is_nothing_to_tell(ends: tuple[Wire, Wire]) -> None:
    leader, follower = ends
    assert not leader.has_hung_up()
    follower.close()
    while not leader.has_hung_up():
        pass
    leader.close()
    assert not leader.has_hung_up()


def test_a_watch_that_fell_asleep_sees_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_watch, "_SLEEP_AFTER_S", 0.0)
    watched = Watched()
    with watched.watch.during({}, timeout_s=1000.0):
        pass
    while not watched.watch._is_asleep:
        pass
    with pytest.raises(GroupDiedError), watched.watch.during({}, timeout_s=0.3):
        watched.deaths.get(timeout=30.0)


def test_an_early_answer_and_a_failure_that_the_leader_shares_are_nothing_to_worry_about(
    ends: tuple[Wire, Wire],
) -> None:
    leader, follower = ends
    watched = Watched(failure_grace_s=1000.0)
    for header in ({"op": "done", "id": 1}, ERROR):
        follower.send(header)
        with watched.watch.during({1: leader}, timeout_s=60.0):
            while watched.watch._failed_at is None and header is ERROR:
                pass
        leader.receive(lambda _, __: [], timeout_s=10.0)
    assert watched.deaths.empty()
    watched.watch.close()


def lanes_around(wire: Wire, module: torch.nn.Module, *, num_lanes: int) -> Lanes:
    return Lanes(
        LaneLayout(num_ranks=2, num_lanes=num_lanes),
        local={"transformer": LocalComponent.wrap("transformer", module, is_denoiser=True)},
        links={1: Link(wire, TensorRoute(CPU, None, 1))},
        failure_grace_s=0.3,
    )


class Failing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("the leader's own")


def one_call() -> ComponentCall:
    call = ComponentCall("transformer", (torch.ones(1, 2),), {}, None)
    call.encode()
    return call


def test_a_follower_that_waits_for_the_failed_leader_is_a_dead_group(ends: tuple[Wire, Wire]) -> None:
    lanes = lanes_around(ends[0], Failing(), num_lanes=1)
    with pytest.raises(GroupDiedError, match=r"rank 1 did not end a call .*: the leader's own"):
        lanes.run([one_call()])
    lanes.close()


def test_a_failure_on_all_ranks_of_a_lane_is_the_calls_own(ends: tuple[Wire, Wire]) -> None:
    leader, follower = ends
    lanes = lanes_around(leader, Failing(), num_lanes=1)
    follower.send({**ERROR, "tensors": []})
    with pytest.raises(ValueError, match="the leader's own"):
        lanes.run([one_call()])
    lanes.close()


def test_a_failure_on_another_lane_leaves_the_leader_its_time(ends: tuple[Wire, Wire]) -> None:
    """The leader's module runs until the follower's error has long been there: they do not wait for each other."""
    leader, follower = ends
    follower.send({**ERROR, "tensors": []})
    lanes = lanes_around(leader, torch.nn.Identity(), num_lanes=2)
    with pytest.raises(CallError, match="made to fail"):
        lanes.run([one_call(), one_call()])
    lanes.close()
