"""Values over a real connection: what is sent again, what only named, and what a broken message does."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from workers.encoding import flatten
from workers.errors import GroupDiedError
from workers.link import Link, Received, TensorRoute
from workers.structure_memory import SentStructures
from workers.tensor_memory import MIN_REMEMBERED_BYTES, SentTensors
from workers.wire import WireListener, connect, new_key

ROUTE = TensorRoute(torch.device("cpu"), None, 0)
NUM = MIN_REMEMBERED_BYTES // 4


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    """A leader's end, which remembers, and a follower's."""
    key, wires = new_key(), []
    listener = WireListener("127.0.0.1", key)
    joining = threading.Thread(
        target=lambda: wires.append(connect(listener.address, key, world_rank=1, timeout_s=10.0)), daemon=True
    )
    joining.start()
    own = listener.accept(1, timeout_s=10.0)[1]
    joining.join(timeout=10.0)
    listener.close()
    yield Link(own, ROUTE, SentTensors()), Link(wires[0], ROUTE)
    own.close()
    wires[0].close()


def cross(links: tuple[Link, Link], value: Any) -> Received:
    links[0].send({"op": "call"}, flatten(value), timeout_s=10.0)
    return links[1].receive(timeout_s=10.0)


def test_values_cross_with_their_types_and_the_second_time_by_number(links: tuple[Link, Link]) -> None:
    values = [{"scale": scale, "flag": True, "one": 1, "x": torch.full((3,), scale)} for scale in (0.5, 2.0)]
    for value in values:
        received = cross(links, value).value
        assert received["scale"] == value["scale"]
        assert received["flag"] is True
        assert type(received["one"]) is int
        assert torch.equal(received["x"], value["x"])
    assert links[0]._sent_structures.entry(flatten(values[0]).structure) == [0]


def test_values_that_are_equal_but_of_other_types_have_other_structures() -> None:
    names = [flatten({"x": value}).structure.name for value in (1, True, 1.0, "1", [1], (1,), None, {"T": 1}, ["T", 1])]
    assert len(set(names)) == len(names)


def test_a_tensor_that_comes_twice_in_a_message_is_the_new_one_both_times(links: tuple[Link, Link]) -> None:
    for _ in range(40):  # more than there are slots: every slot has held another tensor
        tensor = torch.randn(NUM)
        first, second = cross(links, [tensor, tensor]).value
        assert torch.equal(first, tensor)
        assert torch.equal(second, tensor)


def test_a_tensor_changed_in_place_is_sent_again(links: tuple[Link, Link]) -> None:
    tensor = torch.zeros(2, NUM)
    cross(links, tensor[1:])
    tensor.add_(1.0)
    assert torch.equal(cross(links, tensor[1:]).value, tensor[1:])


def test_an_unchanged_tensor_is_not_sent_again(links: tuple[Link, Link]) -> None:
    tensor = torch.randn(NUM)
    cross(links, {"x": tensor})
    before = links[0].sent_bytes
    assert torch.equal(cross(links, {"y": tensor}).value["y"], tensor)
    assert links[0].sent_bytes == before


@pytest.mark.parametrize(
    ("tensor", "is_dense"),
    [
        (torch.randn(4, 6)[:, ::2], False),
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.randn(3, 4).t(), True),
        (torch.tensor(7.0).expand(5), False),
        (torch.randn(8)[1::3], False),
        (torch.randn(3).bfloat16(), True),
    ],
    ids=["strided", "channels_last", "transposed", "expanded", "offset", "bfloat16"],
)
def test_any_strides_cross_with_values_and_memory_order(
    links: tuple[Link, Link], tensor: torch.Tensor, is_dense: bool
) -> None:
    received = cross(links, tensor).value
    assert torch.equal(received, tensor)
    if is_dense:
        assert received.stride() == tensor.stride()


def test_structures_beyond_the_slots_are_sent_anew(links: tuple[Link, Link]) -> None:
    links[0]._sent_structures = SentStructures(num_slots=2)
    for length in (1, 2, 3, 1, 3, 2):
        value = [torch.full((length,), float(length))] * length
        received = cross(links, value).value
        assert [tensor.tolist() for tensor in received] == [tensor.tolist() for tensor in value]


@pytest.mark.parametrize(
    "message",
    [
        [[7], [], [], []],
        [[0, ["T", 0], [[[2], "float32", "cpu", None]]], [], [3], []],
        [[0, ["T", 0], [[[-2], "float32", "cpu", None]]], [], [None], [0]],
        [[0, ["T", 0], [[[2], "Tensor", "cpu", None]]], [], [None], [0]],
        [[900, None, []], [], [], []],
        "nonsense",
    ],
    ids=["unknown_structure", "unknown_tensor", "negative_shape", "no_dtype", "slot_out_of_range", "no_list"],
)
def test_a_message_that_makes_no_sense_ends_the_link(links: tuple[Link, Link], message: Any) -> None:
    links[0].wire.send({"op": "call", "value": message}, timeout_s=10.0)
    with pytest.raises(GroupDiedError):
        links[1].receive(timeout_s=10.0)
    with pytest.raises(GroupDiedError):
        links[0].receive(timeout_s=10.0)


def test_a_value_that_could_not_be_sent_whole_ends_the_link(links: tuple[Link, Link]) -> None:
    """Else the memories would hold what the peer has never got."""
    tensor = torch.empty(NUM, device="meta")
    with pytest.raises(GroupDiedError, match="could not be sent"):
        links[0].send({"op": "call"}, flatten(tensor), timeout_s=10.0)
    with pytest.raises(GroupDiedError):
        links[0].send({"op": "call"}, flatten(torch.randn(3)), timeout_s=10.0)
