"""Every class with a tiny configuration, sharded on two ranks against the library's own (`make test-all`)."""

from pathlib import Path
from typing import Any

import diffusers
import pytest

from planner.boundaries import CUT_INTO_PARTS
from tests.dist.weights.compare import compare_by_parts, write_checkpoint
from tests.dist.weights.matrix import run_matrix, table_in_page, table_of
from tests.dist.weights.ranks import run_ranks
from tests.dist.weights.tiny_models import all_models, find_model

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_matrix(Path(tmp_path_factory.mktemp("matrix")))


def test_every_class_is_equal_to_the_bit(results: list[dict[str, Any]]) -> None:
    unequal = {result["name"]: result["rule"] for result in results if not (result["equal"] and result["meaningful"])}
    assert unequal == {}


def test_classes_that_only_the_library_can_load(results: list[dict[str, Any]]) -> None:
    assert [result["name"] for result in results if result["loaded_by"] == "library"] == []


def test_every_class_that_may_be_cut_into_parts_is_equal_then(tmp_path: Path) -> None:
    names = [model.class_name for model in all_models() if model.class_name in CUT_INTO_PARTS]
    assert set(names) == CUT_INTO_PARTS
    for name in names:
        write_checkpoint(find_model(name), tmp_path / name)
    assert run_ranks(compare_by_parts, tmp_path, names, str(tmp_path), deadline_s=300) == [[], []]


def test_table_in_the_docs_is_this_one(results: list[dict[str, Any]]) -> None:
    assert table_in_page() == table_of(results), "run: python -m tests.dist.weights.matrix"


def test_matrix_covers_most_transformers_of_diffusers() -> None:
    covered = {
        model.class_name
        for model in all_models()
        if model.library == "diffusers" and "models.transformers" in getattr(diffusers, model.class_name).__module__
    }
    assert len(covered) >= 60
