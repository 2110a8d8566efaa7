"""What sharding keeps, refuses and saves; all cases in one start of two gloo ranks."""

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.dist.weights.ranks import run_ranks
from tests.dist.weights.sharding_cases import all_cases
from tests.dist.weights.tiny_models import WAN

pytestmark = pytest.mark.timeout(180)  # two ranks start and import everything


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank reports, by case."""
    folder = tmp_path_factory.mktemp("sharding")
    torch.manual_seed(0)
    wide = WanTransformer3DModel(**{**WAN, "num_attention_heads": 16, "attention_head_dim": 32, "ffn_dim": 2048})
    wide.save_pretrained(folder / "wide")
    return run_ranks(all_cases, folder, str(folder))


def each(results: list[dict[str, Any]], case: str) -> list[dict[str, Any]]:
    return [result[case] for result in results]


def test_a_rank_reads_and_holds_its_half_and_at_most_two_percent_more(results: list[dict[str, Any]]) -> None:
    shares = each(results, "bytes_of_a_wide_model")
    payload = sum(share["bytes_read"] for share in shares)
    assert payload > 30e6
    for share in shares:
        assert share["bytes_read"] <= 0.52 * payload
        assert share["held"] <= 0.52 * payload


def test_float32_islands_stay_in_a_bfloat16_model(results: list[dict[str, Any]]) -> None:
    for found in each(results, "bfloat16_with_float32_islands"):
        assert found == {"equal": True, "dtypes": ["torch.bfloat16", "torch.float32"]}


def test_weight_loader_is_kept_found_on_the_original_and_used(results: list[dict[str, Any]]) -> None:
    for found in each(results, "weight_loaders"):
        assert found == {"kept": True, "on_original": True, "by_loader": True, "plain": True}


def test_sharded_modules_are_neither_moved_nor_cast(results: list[dict[str, Any]]) -> None:
    for found in each(results, "moves"):
        assert found == {"before": False, "after": True, "refused": [True] * 6}


def test_decode_and_encode_gather_too(results: list[dict[str, Any]]) -> None:
    for found in each(results, "methods_beside_forward"):
        assert found["equal"] == [True, True, True]
        assert found["num_blocks"] > 4


def test_ties_survive_in_the_root_and_across_blocks(results: list[dict[str, Any]]) -> None:
    for found in each(results, "tied_across_blocks"):
        assert found["equal"]
        assert found["root_tie"]
        assert found["block_tie"]
        assert {f"model.layers.{block}.mlp.down_proj.weight" for block in (0, 1)} <= set(found["whole"])
        assert "model.layers.0.mlp.up_proj.weight" not in found["whole"]


def test_scalars_stay_whole_and_uneven_rows_are_right(results: list[dict[str, Any]]) -> None:
    for found in each(results, "scalars_and_uneven_rows"):
        assert found == {"equal": [True, True], "whole": ["layers.0.bias", "layers.1.bias", "scale"]}


def test_placed_shards_are_what_is_gathered(results: list[dict[str, Any]]) -> None:
    for found in each(results, "placed_shards"):
        assert found == {"equal": True, "told_of_all": True, "unfilled": []}


def test_two_blocks_or_two_parts_are_whole_at_once_and_none_after_the_call(results: list[dict[str, Any]]) -> None:
    for found in each(results, "blocks_and_parts"):
        blocks, parts = found["blocks"], found["parts"]
        assert blocks["equal"] == parts["equal"] == [True] * 3
        assert blocks["blocks_at_once"] == pytest.approx(2.0, rel=0.03)  # vectors are whole anyway
        assert parts["blocks_at_once"] == pytest.approx(1.0, rel=0.03)
        assert (blocks["left"], parts["left"]) == (0, 0)
        # Only the very first block of a call has nothing before it that would hide its gather.
        assert blocks["misses"] == parts["misses"] == 0


def test_a_call_that_fails_leaves_nothing_behind(results: list[dict[str, Any]]) -> None:
    for found in each(results, "failing_call"):
        assert found == {"failed": True, "left": 0, "equal": True}


def test_compiled_blocks_are_not_sharded_by_parts(results: list[dict[str, Any]]) -> None:
    for found in each(results, "compiled_by_parts"):
        assert "shard by blocks, or do not compile" in found


def test_blocks_inside_of_compiled_blocks_are_gathered_with_them(results: list[dict[str, Any]]) -> None:
    for found in each(results, "compiled_blocks_in_blocks"):
        assert found == {"UNet2DConditionModel": True, "DiTTransformer2DModel": True}


def test_weights_past_their_call_are_no_numbers(results: list[dict[str, Any]]) -> None:
    for found in each(results, "use_past_the_call"):
        assert found == {"shape": [128, 64], "numbers": 0}


def test_compiled_blocks_stay_compiled_when_sharded(results: list[dict[str, Any]]) -> None:
    for found in each(results, "compiled_blocks"):
        assert found["equal"] == [True, True, True]
        assert found["num_graphs"] > 0


def test_part_of_a_block_that_is_called_past_it_is_gathered(results: list[dict[str, Any]]) -> None:
    for found in each(results, "borrowed_part_of_a_block"):
        assert found == {"equal": [True, True], "borrowed": ["transformer_blocks.0.norm1.emb"]}


def test_what_a_pipeline_reads_past_the_call_is_whole_on_every_rank(results: list[dict[str, Any]]) -> None:
    for found in each(results, "read_past_the_call"):
        assert found["equal"]
        assert {"clip_mean", "clip_std"} <= set(found["whole"])


def test_norms_keep_their_casts_when_sharded(results: list[dict[str, Any]]) -> None:
    for found in each(results, "cached_norms"):
        assert found["equal"] == [True, True, True]
        assert found["count"] > 0
