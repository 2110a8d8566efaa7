"""All cases of the seam's matrix."""

from tests.seam import basic
from tests.seam.tiny import Case

ALL_CASES: tuple[Case, ...] = (*basic.CASES,)


def find_case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in ALL_CASES if case.name == name)
