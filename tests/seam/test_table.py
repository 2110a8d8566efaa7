"""docs/seam.md says what the tests find."""

import pytest

from tests.seam.table import generated_part, part_in_page
from tests.seam.uncovered import uncovered_pipelines, unused_reasons


def test_every_guided_pipeline_has_a_case_or_a_reason() -> None:
    uncovered = uncovered_pipelines()
    assert unused_reasons(uncovered) == []


@pytest.mark.full
@pytest.mark.timeout(900)
def test_page_shows_this_table() -> None:
    assert part_in_page() == generated_part(), "run: python -m tests.seam.table"
