"""Sharded on two gloo ranks and loaded straight from the files, against the library's own: equal to the bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.weights.compare import compare_all, compare_by_parts, write_checkpoint
from tests.dist.weights.ranks import run_ranks
from tests.dist.weights.tiny_models import all_models, find_model
from workers.stream_files import find_weight_files, read_headers

QUICK_NAMES = [model.class_name for model in all_models() if model.quick]

pytestmark = pytest.mark.timeout(180)  # two ranks start and import everything


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    for name in QUICK_NAMES:
        write_checkpoint(find_model(name), folder / name)
    return folder


@pytest.fixture(scope="module")
def quick_results(quick_folder: Path) -> list[dict[str, dict[str, Any]]]:
    """By rank and class name; all classes in one start of the ranks."""
    per_rank = run_ranks(compare_all, quick_folder, QUICK_NAMES, str(quick_folder))
    return [{result["name"]: result for result in results} for results in per_rank]


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_sharded_result_equals_the_librarys_to_the_bit(
    quick_results: list[dict[str, dict[str, Any]]], name: str
) -> None:
    for results in quick_results:
        assert results[name]["meaningful"]
        assert results[name]["equal"]
        assert results[name]["loaded_by"] == "direct"
        assert results[name]["num_blocks"] >= 2


def test_blocks_gathered_part_by_part_give_the_same(quick_folder: Path, tmp_path: Path) -> None:
    names = ["WanTransformer3DModel", "QwenImageTransformer2DModel", "LlamaModel"]
    assert run_ranks(compare_by_parts, tmp_path, names, str(quick_folder)) == [[], []]


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_ranks_together_read_each_byte_once(
    quick_results: list[dict[str, dict[str, Any]]], quick_folder: Path, name: str
) -> None:
    """Except what every rank keeps whole (persistent buffers)."""
    stored = read_headers(find_weight_files(quick_folder / name, library=find_model(name).library).files)
    payload = sum(tensor.num_bytes for tensor in stored.values())
    whole = quick_results[0][name]["whole_bytes"]
    assert sum(results[name]["bytes_read"] for results in quick_results) == payload + whole
