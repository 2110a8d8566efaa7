"""After an error the group is clean (the next result is a fresh group's, to the bit) or dead, never in between."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.lanes_in_threads import CPU, leader_of_threads
from tests.tiny_checkpoints import make_tiny_wan_pipeline
from workers.call_pace import CallDeadlines, CallPace
from workers.calls import GenerateCall, GenerateResult, Progress
from workers.component_call import LocalComponent
from workers.components import RankComponents
from workers.errors import CallError, CallOutOfMemoryError, GroupDiedError
from workers.lanes import LaneLayout, Lanes
from workers.leader import Leader
from workers.link import Link, TensorRoute
from workers.tensor_memory import SentTensors
from workers.wire import Wire

GOOD = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
POISONED = torch.full_like(GOOD, torch.inf)
ARGUMENTS: dict[str, Any] = {
    "prompt": None,
    "negative_prompt": None,
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 3,
    "output_type": "latent",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def refuse_poison(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Stands for whatever a model raises in the midst of a call whose arguments look like any other's."""
    if torch.isinf(kwargs["encoder_hidden_states"]).any():
        raise ArithmeticError("the embeddings are poisoned")


GREEDY = torch.full_like(GOOD, -torch.inf)


def run_out_of_memory(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """More bytes than a process has addresses: refused by every machine."""
    if torch.isneginf(kwargs["encoder_hidden_states"]).any():
        torch.empty(2**50)


def make_pipeline() -> Any:
    pipeline = make_tiny_wan_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.register_forward_pre_hook(run_out_of_memory, with_kwargs=True)
    pipeline.transformer.register_forward_pre_hook(refuse_poison, with_kwargs=True)
    return pipeline


def run(
    leader: Leader, *, positive: torch.Tensor = GOOD, negative: torch.Tensor = -GOOD, **changes: Any
) -> GenerateResult:
    embeddings = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    return leader.run(GenerateCall({**ARGUMENTS, **embeddings, **changes}, seed=3), lambda event: None)


@pytest.fixture(scope="module")
def fresh() -> torch.Tensor:
    """What a group that has seen no error gives."""
    torch.set_num_threads(1)
    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)
        return run(leader).output


@pytest.mark.parametrize(
    ("poisoned", "lane"),
    [({"positive": POISONED}, 0), ({"negative": POISONED}, 1), ({"positive": POISONED, "negative": POISONED}, 0)],
    ids=["first_lane", "second_lane", "both_lanes"],
)
def test_an_error_in_a_lane_leaves_the_group_clean(
    fresh: torch.Tensor, poisoned: dict[str, torch.Tensor], lane: int
) -> None:
    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)  # from here on both branches run at once
        with pytest.raises(CallError, match="ArithmeticError") as caught:
            run(leader, **poisoned)
        if lane == 1:
            for part in ("transformer on rank 1", "the embeddings are poisoned", "in refuse_poison"):
                assert part in str(caught.value)
        result = run(leader)
    assert torch.equal(result.output, fresh)
    assert [stats.denoiser_rows for stats in result.ranks] == [3, 3]


@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_a_lack_of_memory_in_a_lane_is_the_calls_own_error(fresh: torch.Tensor, branch: str) -> None:
    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)
        with pytest.raises(CallOutOfMemoryError, match=f"on rank {int(branch == 'negative')}: .*can't allocate"):
            run(leader, **{branch: GREEDY})
        result = run(leader)
    assert torch.equal(result.output, fresh)


def test_an_error_of_the_leader_between_calls_leaves_the_group_clean(fresh: torch.Tensor) -> None:
    def fail_at_second_step(pipeline: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise ArithmeticError("the scheduler's end")
        return {}

    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)
        with pytest.raises(CallError, match="the scheduler's end"):
            run(leader, callback_on_step_end=fail_at_second_step)
        result = run(leader)
    assert torch.equal(result.output, fresh)
    assert [stats.denoiser_rows for stats in result.ranks] == [3, 3]


def test_an_error_while_a_call_waits_in_the_queue_leaves_the_group_clean(fresh: torch.Tensor) -> None:
    """The first branch is queued when the second's arguments are refused before they reach a lane."""
    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)
        with pytest.raises(CallError):
            run(leader, negative=torch.randn(1, 16, 31))
        result = run(leader)
    assert torch.equal(result.output, fresh)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_garbled_frame_is_the_groups_end() -> None:
    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)
        leader._lanes._links[1].wire._socket.sendall(b"\xff" * 64)
        for _ in range(2):
            with pytest.raises(GroupDiedError):
                run(leader)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_answer_to_another_call_is_the_groups_end() -> None:
    with leader_of_threads(make_pipeline(), num_lanes=2) as leader:
        run(leader)

        def skip_a_number(event: Progress) -> None:
            if event.step == 1:
                leader._lanes._links[1].send({"op": "stats"}, timeout_s=5.0)  # an answer nobody waits for

        embeddings = {"prompt_embeds": GOOD, "negative_prompt_embeds": -GOOD}
        with pytest.raises(GroupDiedError):
            leader.run(GenerateCall({**ARGUMENTS, **embeddings}, seed=3), skip_a_number)
        with pytest.raises(GroupDiedError):
            run(leader)


@contextmanager
def leader_with_raw_peer(*, call_timeout_s: float) -> Iterator[tuple[Leader, socket.socket]]:
    """A leader whose follower is a bare socket, for answers that no follower would give."""
    door = socket.create_server(("127.0.0.1", 0))
    peer = socket.create_connection(door.getsockname())
    wire = Wire(door.accept()[0], peer="rank 1")
    door.close()
    pipeline = make_pipeline()
    lanes = Lanes(
        LaneLayout(num_ranks=2, num_lanes=2),
        local={"transformer": LocalComponent.wrap("transformer", pipeline.transformer, is_denoiser=True)},
        links={1: Link(wire, TensorRoute(CPU, None, 1), SentTensors())},
        pace=CallPace(CallDeadlines(floor_s=call_timeout_s, first_s=call_timeout_s)),
    )
    yield Leader(pipeline, lanes, components=RankComponents()), peer
    peer.close()
    lanes.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x05", struct.pack("<II", 50, 0) + b'{"op": "res', struct.pack("<IIQ", 2, 1, 4096) + b"{}" + b"x" * 100],
    ids=["nothing", "in_the_prefix", "in_the_header", "in_a_tensor"],
)
def test_an_answer_that_misses_its_deadline_is_the_groups_end(answer: bytes) -> None:
    with leader_with_raw_peer(call_timeout_s=0.5) as (leader, peer):
        discard = threading.Thread(target=read_all, args=(peer,), daemon=True)
        discard.start()
        peer.sendall(answer)
        for _ in range(2):
            with pytest.raises(GroupDiedError):
                run(leader)
        discard.join(timeout=10.0)
        assert not discard.is_alive(), "the connection is still open"


def read_all(peer: socket.socket) -> None:
    while peer.recv(1 << 16):
        pass
