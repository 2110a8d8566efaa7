import torch

from workers.tensor_memory import MIN_REMEMBERED_BYTES, SentTensors

NUM = MIN_REMEMBERED_BYTES // 4


def test_an_unchanged_tensor_is_found_also_through_a_new_view() -> None:
    sent, tensor = SentTensors(), torch.randn(2, NUM)
    slot, is_known = sent.place(tensor[:1])
    assert not is_known
    assert sent.place(tensor[:1]) == (slot, True)
    assert not sent.place(tensor[1:])[1]
    assert not sent.place(tensor)[1]


def test_a_tensor_changed_in_place_is_not_found() -> None:
    sent, tensor = SentTensors(), torch.randn(NUM)
    sent.place(tensor)
    tensor.add_(1)
    assert not sent.place(tensor)[1]
    assert sent.place(tensor)[1]


def test_a_tensor_changed_through_its_base_is_not_found() -> None:
    sent, base = SentTensors(), torch.randn(2, NUM)
    sent.place(base[0])
    base.zero_()
    assert not sent.place(base[0])[1]


def test_an_address_cannot_be_reused_while_it_is_remembered() -> None:
    sent = SentTensors()
    for _ in range(8):
        tensor = torch.randn(NUM)
        assert not sent.place(tensor)[1]
        del tensor


def test_inference_tensors_and_small_ones_are_always_sent() -> None:
    sent = SentTensors()
    with torch.inference_mode():
        tensor = torch.randn(NUM)
    for _ in range(2):
        assert sent.place(tensor) == (None, False)
        assert sent.place(torch.randn(4)) == (None, False)


def test_the_least_recently_used_slot_is_taken_again() -> None:
    sent = SentTensors(num_slots=2)
    first, second, third = (torch.randn(NUM) for _ in range(3))
    sent.place(first)
    slot, _ = sent.place(second)
    sent.place(first)
    assert sent.place(third) == (slot, False)
    assert sent.place(first)[1]
    assert not sent.place(second)[1]
