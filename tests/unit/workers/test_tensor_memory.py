import torch

from workers.tensor_memory import MIN_REMEMBERED_BYTES, SentTensors

NUM = MIN_REMEMBERED_BYTES // 4


def test_an_unchanged_tensor_is_found_also_through_a_new_view() -> None:
    sent, tensor = SentTensors(), torch.randn(2, NUM)
    slot = sent.remember(tensor[:1])
    assert sent.find(tensor[:1]) == slot
    assert sent.find(tensor[1:]) is None
    assert sent.find(tensor) is None


def test_a_tensor_changed_in_place_is_not_found() -> None:
    sent, tensor = SentTensors(), torch.randn(NUM)
    sent.remember(tensor)
    tensor.add_(1)
    assert sent.find(tensor) is None


def test_a_tensor_changed_through_its_base_is_not_found() -> None:
    sent, base = SentTensors(), torch.randn(2, NUM)
    sent.remember(base[0])
    base.zero_()
    assert sent.find(base[0]) is None


def test_an_address_cannot_be_reused_while_it_is_remembered() -> None:
    sent = SentTensors()
    for _ in range(8):
        tensor = torch.randn(NUM)
        assert sent.find(tensor) is None
        sent.remember(tensor)
        del tensor


def test_inference_tensors_and_small_ones_are_always_sent() -> None:
    sent = SentTensors()
    with torch.inference_mode():
        tensor = torch.randn(NUM)
    assert sent.remember(tensor) is None
    assert sent.remember(torch.randn(4)) is None


def test_the_least_recently_used_slot_is_taken_again() -> None:
    sent = SentTensors(num_slots=2)
    first, second, third = (torch.randn(NUM) for _ in range(3))
    sent.remember(first)
    slot = sent.remember(second)
    sent.find(first)
    assert sent.remember(third) == slot
    assert sent.find(second) is None
    assert sent.find(first) is not None
