"""Every pipeline of the matrix equals its serial run on two lanes, with the denoiser's work halved."""

import pytest

from tests.seam.cases import ALL_CASES
from tests.seam.equality import BATCHED_TOLERANCE, compare_on_two_lanes
from tests.seam.tiny import Case


def marked(case: Case) -> object:
    return pytest.param(case, id=case.name, marks=() if case.is_representative else pytest.mark.full)


@pytest.mark.parametrize("case", [marked(case) for case in ALL_CASES])
def test_two_lanes_equal_serial_at_half_the_work(case: Case) -> None:
    result = compare_on_two_lanes(case)
    assert result.relative_error <= (BATCHED_TOLERANCE if case.is_batched else 0.0)
    if case.is_batched:
        assert result.would_show >= 10 * BATCHED_TOLERANCE, "a wrong join would not be seen: the branches are too alike"
    if case.reason_not_halved is None:
        assert result.is_halved, f"rows a rank {result.rows}, serial {result.serial_rows}"
    else:
        assert not result.is_halved, "the work is halved: take the reason away"


def test_names_are_distinct() -> None:
    names = [case.name for case in ALL_CASES]
    assert len(set(names)) == len(names)
