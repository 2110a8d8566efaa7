"""What is cut, in which order plans are tried, and how results are joined."""

from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from workers.batch_split import MAX_PLANS, CutPlan, CutRule, cut_plans, is_close, join_results, split_call
from workers.component_call import ComponentCall


def call(*args: Any, **kwargs: Any) -> ComponentCall:
    made = ComponentCall("transformer", args, kwargs, None)
    made.encode()
    return made


def rows(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def test_tensors_lists_and_dictionaries_of_the_batch_are_cut_the_rest_is_not() -> None:
    batch, table = rows(2, 3), rows(5, 3)
    whole = call(batch, torch.tensor(7), added={"ids": batch}, shapes=[[(1, 2)], [(3, 4)]], rope=(table, table))
    first, second = split_call(whole, 2, CutPlan())
    assert torch.equal(first.args[0], batch[:1])
    assert torch.equal(second.args[0], batch[1:])
    assert second.args[1] == 7
    assert torch.equal(second.kwargs["added"]["ids"], batch[1:])
    assert first.kwargs["shapes"] == [[(1, 2)]]
    assert second.kwargs["shapes"] == [[(3, 4)]]
    assert second.kwargs["rope"][0] is table


def test_a_list_of_batches_is_cut_entry_by_entry() -> None:
    whole = call(rows(2, 3), residuals=[rows(2, 4), rows(2, 5)])
    second = split_call(whole, 2, CutPlan())[1]
    assert [tuple(tensor.shape) for tensor in second.kwargs["residuals"]] == [(1, 4), (1, 5)]


def test_three_rows_on_two_lanes_are_two_and_one() -> None:
    parts = split_call(call(rows(3, 2)), 2, CutPlan())
    assert [part.num_rows for part in parts] == [2, 1]


def test_more_lanes_than_rows_give_a_part_a_row() -> None:
    assert len(split_call(call(rows(2, 2)), 4, CutPlan())) == 2


def test_multiples_keep_the_frames_of_a_row_together() -> None:
    second = split_call(call(rows(2, 1), text=rows(6, 1)), 2, CutPlan(CutRule.MULTIPLES))[1]
    assert second.kwargs["text"].flatten().tolist() == [3, 4, 5]


def test_the_batch_may_be_dimension_one() -> None:
    stacked = rows(4, 2, 3)
    second = split_call(call(rows(2, 1), states=stacked), 2, CutPlan(CutRule.SECOND))[1]
    assert torch.equal(second.kwargs["states"], stacked[:, 1:])


def test_a_dictionary_of_rows_is_cut_with_the_list_that_it_describes() -> None:
    whole = call(rows(3, 1), pictures=["a", "b", "c"], places={0: [[1, 2], [3, 4]], 2: [[5, 6]]})
    first, second = split_call(whole, 2, CutPlan())
    assert (first.kwargs["pictures"], first.kwargs["places"]) == (["a", "b"], {0: [[1, 2], [3, 4]]})
    assert (second.kwargs["pictures"], second.kwargs["places"]) == (["c"], {0: [[5, 6]]})


def test_exceptions_leave_an_argument_whole() -> None:
    table = rows(2, 3)
    plan = CutPlan(exceptions=(("table", CutRule.WHOLE),))
    assert split_call(call(rows(2, 1), table=table), 2, plan)[1].kwargs["table"] is table


def test_plans_begin_with_rows_then_leave_one_argument_whole_and_never_repeat_a_cut() -> None:
    plans = list(cut_plans(call(rows(2, 1), table=rows(2, 3), text=rows(6, 1), flag=True), 2))
    assert plans[0] == CutPlan()
    assert plans[1] == CutPlan(exceptions=(("table", CutRule.WHOLE),))
    assert plans[2] == CutPlan(CutRule.MULTIPLES)
    assert len(plans) == 4  # {table cut, whole} x {text cut, whole}


def test_the_number_of_plans_is_limited() -> None:
    many = {f"table_{index}": rows(2, 3) for index in range(40)}
    assert len(list(cut_plans(call(rows(2, 1), **many), 2))) == MAX_PLANS


def test_lists_of_rows_are_joined_end_to_end_and_lists_of_batches_entry_by_entry() -> None:
    per_row = join_results([[rows(3)], [rows(3)]], like=[rows(3), rows(3)])
    per_block = join_results([(rows(1, 3),), (rows(1, 3),)], like=(rows(2, 3),))
    assert [tuple(tensor.shape) for tensor in per_row] == [(3,), (3,)]
    assert [tuple(tensor.shape) for tensor in per_block] == [(2, 3)]


def test_joining_finds_the_dimension_of_the_batch() -> None:
    like = torch.empty(4, 2, 3, device="meta")
    assert join_results([rows(4, 1, 3), rows(4, 1, 3)], like=like).shape == (4, 2, 3)


def test_output_dataclasses_are_joined_field_by_field() -> None:
    part, like = Transformer2DModelOutput(sample=rows(1, 2)), Transformer2DModelOutput(sample=rows(2, 2))
    joined = join_results([part, part], like=like)
    assert type(joined) is Transformer2DModelOutput
    assert joined.sample.shape == (2, 2)


@pytest.mark.parametrize("parts", [[rows(1, 3), rows(1, 4)], [[rows(1)], [rows(1), rows(1)]]])
def test_parts_that_do_not_add_up_are_refused(parts: list[Any]) -> None:
    like = rows(2, 3) if isinstance(parts[0], torch.Tensor) else [rows(1)] * 5
    with pytest.raises((ValueError, RuntimeError)):
        join_results(parts, like=like)


def test_closeness_allows_rounding_and_no_more() -> None:
    whole = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert is_close([whole * (1 + 1e-6)], [whole])
    assert not is_close([whole * 1.01], [whole])
    assert not is_close([whole.double()], [whole])
