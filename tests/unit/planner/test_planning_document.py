"""docs/planning.md says what the code says."""

import pytest

pytest.importorskip("torch")

from tests.tools.make_planning_table import (
    DOCUMENT,
    incompatibilities_table,
    models_table,
    replace_parts,
    schema_text,
)


def test_incompatibilities_and_schema_are_the_codes_own() -> None:
    text = DOCUMENT.read_text()
    assert replace_parts(text, {"incompatibilities": incompatibilities_table(), "schema": schema_text()}) == text


@pytest.mark.full
def test_table_of_models_is_up_to_date() -> None:
    text = DOCUMENT.read_text()
    assert replace_parts(text, {"models": models_table()}) == text
