"""Tokens of each model split over gloo ranks, against the same model unsplit."""

from pathlib import Path
from typing import Any

import pytest

from planner.tables import find_model, model_names
from tests.dist.sequence.cases import CASES, find_case
from tests.dist.sequence.compare import TOLERANCE, call_too_short, compare_placements
from tests.dist.sequence.matrix import run_matrix, table_in_page, table_of
from tests.dist.weights.ranks import run_ranks

pytestmark = pytest.mark.timeout(320)  # two ranks start and import everything
QUICK_NAMES = [case.name for case in CASES if case.quick]
Results = list[list[dict[str, Any]]]


def check(results: Results) -> None:
    """Every rank has the same bits, and they are the unsplit model's but for rounding."""
    for per_case in zip(*results, strict=True):
        first, name = per_case[0], per_case[0]["name"]
        for size in ("even", "uneven"):
            assert "error" not in first[size], (name, size, first[size])
            assert first[size]["meaningful"], name
            assert first[size]["relative"] <= TOLERANCE, (name, size)
            assert {result[size]["digest"] for result in per_case} == {first[size]["digest"]}, (name, size)
        assert [first[size]["padded"] for size in ("even", "uneven")] == [False, True], name


def test_split_tokens_give_the_unsplit_result(tmp_path: Path) -> None:
    check(run_matrix(tmp_path, names=QUICK_NAMES))


@pytest.mark.full
def test_four_ranks_give_the_unsplit_result(tmp_path: Path) -> None:
    names = [case.name for case in CASES if case.model.config["num_attention_heads"] == 4 and not case.excluded]
    assert len(names) >= 6
    check(run_matrix(tmp_path, num_ranks=4, names=names))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_matrix(Path(tmp_path_factory.mktemp("sequence")))


@pytest.mark.full
def test_every_class_with_a_plan_works_or_is_excluded(results: Results) -> None:
    check([[result for result in per_rank if find_case(result["name"]).excluded is None] for per_rank in results])
    for result in results[0]:
        if find_case(result["name"]).excluded is not None:
            assert "error" in result["even"], f"{result['name']} works now: let it be split"


@pytest.mark.full
def test_table_in_the_docs_is_this_one(results: Results) -> None:
    assert table_in_page() == table_of(results[0]), "run: python -m tests.dist.sequence.matrix"


def test_cases_cover_every_class_that_the_planner_lets_through() -> None:
    declared = {name: find_model("diffusers", name) for name in model_names("diffusers")}
    with_plan = {name for name, model in declared.items() if model is not None and model.context_parallel}
    assert {case.model.class_name for case in CASES} == with_plan


@pytest.mark.full
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "QwenImageTransformer2DModel"])
def test_sharded_and_streamed_weights_with_split_tokens(tmp_path: Path, name: str) -> None:
    for found in run_ranks(compare_placements, tmp_path, name):
        assert set(found) == {"sharded before", "sharded after", "streamed"}
        assert all(result["relative"] <= TOLERANCE for result in found.values()), found


@pytest.mark.full
def test_fewer_tokens_than_ranks_are_refused_on_every_rank_and_the_next_call_is_right(tmp_path: Path) -> None:
    for found in run_ranks(call_too_short, tmp_path, "FluxTransformer2DModel"):
        assert found["refusal"].startswith("InvalidCallError: a sequence of 1 tokens cannot be split over 2 ranks: ask")
        assert found["relative"] <= TOLERANCE
