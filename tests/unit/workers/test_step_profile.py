"""How the calls of the last step decide about cutting."""

import pytest

from workers.step_profile import StepProfile


@pytest.mark.parametrize(
    ("last_step", "num_rows", "num_lanes", "num_parts"),
    [
        ([], 2, 2, 2),  # nothing known: as if it were alone
        ([2], 2, 2, 2),
        ([3], 3, 2, 2),
        ([2], 2, 4, 2),  # two rows cannot use four lanes
        ([1, 1], 1, 2, 1),  # one call a branch
        ([2, 2], 2, 2, 1),  # two branches of two pictures: whole calls, equal to the bit
        ([2, 2], 2, 4, 2),
        ([2, 1], 2, 2, 2),  # skip-layer guidance: the batched call alone fills the lanes
        ([2, 1], 1, 2, 1),
    ],
)
def test_parts_of_a_call(last_step: list[int], num_rows: int, num_lanes: int, num_parts: int) -> None:
    profile = StepProfile()
    for rows in last_step:
        profile.record("unet", rows)
    profile.end_step()
    assert profile.num_parts("unet", num_rows=num_rows, num_lanes=num_lanes) == num_parts


def test_a_second_scheduler_does_not_end_a_step_of_its_own() -> None:
    profile = StepProfile()
    profile.record("unet", 1)
    profile.record("unet", 1)
    profile.end_step()
    profile.end_step()
    assert profile.num_parts("unet", num_rows=2, num_lanes=2) == 1


def test_an_unfinished_step_is_forgotten() -> None:
    profile = StepProfile()
    profile.record("unet", 2)
    profile.forget_step()
    profile.record("unet", 2)
    profile.end_step()
    assert profile.num_parts("unet", num_rows=2, num_lanes=2) == 2
