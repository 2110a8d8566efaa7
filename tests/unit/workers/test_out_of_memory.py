"""Telling a lack of memory from other errors, and giving back what a call held."""

import weakref

import pytest
import torch

from workers.out_of_memory import free_memory_of, is_out_of_memory


def fail_holding(held: list[weakref.ref[torch.Tensor]]) -> None:
    activation = torch.ones(8)
    held.append(weakref.ref(activation))
    torch.empty(2**50)


def test_what_the_failed_calls_frames_held_is_freed_while_the_error_lives() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    with pytest.raises(RuntimeError) as caught:
        fail_holding(held)
    assert is_out_of_memory(caught.value)
    assert held[0]() is not None
    free_memory_of(caught.value)
    assert held[0]() is None


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shapes do not match")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."),
    ],
)
def test_every_allocators_words_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)
