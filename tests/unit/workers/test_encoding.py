import json
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from workers.encoding import (
    UnencodableError,
    decode_tree,
    empty_like_layout,
    encode_tree,
    tensor_bytes,
    tensor_layout,
)


def round_trip(value: Any) -> Any:
    tensors: list[torch.Tensor] = []
    return decode_tree(json.loads(json.dumps(encode_tree(value, tensors))), tensors)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        float("inf"),
        "text",
        [1, (2, "a"), []],
        {"a": 1, 2: (None,)},
        torch.float16,
        torch.Size([1, 2]),
    ],
)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    result = round_trip(value)
    assert result == value
    assert type(result) is type(value)


def test_output_classes_come_back_as_themselves() -> None:
    output = round_trip(Transformer2DModelOutput(sample=torch.ones(2)))
    assert type(output) is Transformer2DModelOutput
    assert torch.equal(output.sample, torch.ones(2))


@pytest.mark.parametrize("value", [object(), {"cache": object()}, torch.ones(2).to_sparse(), {1, 2}])
def test_what_has_no_place_in_a_message_is_refused(value: Any) -> None:
    with pytest.raises(UnencodableError):
        encode_tree(value, [])


def test_an_output_class_outside_the_two_libraries_is_refused() -> None:
    with pytest.raises(UnencodableError, match="not an output"):
        decode_tree(["out", "subprocess", "Popen", []], [])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4),
        torch.randn(2, 3, 4).permute(2, 0, 1),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last).chunk(2, dim=1)[1],
        torch.randn(4, 6)[:, ::2],
        torch.tensor(7.0).expand(1),
        torch.tensor(7.0).expand(5),
        torch.randn(3).bfloat16(),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.empty(0, 4),
    ],
    ids=[
        "dense",
        "permuted",
        "channels_last",
        "half_of_channels_last",
        "strided",
        "expanded1",
        "expanded5",
        "bfloat16",
        "scalar",
        "bool",
        "empty",
    ],
)
def test_tensor_bytes_rebuild_values_and_memory_order(tensor: torch.Tensor) -> None:
    dense, rebuilt = empty_like_layout(json.loads(json.dumps(tensor_layout(tensor))), device=torch.device("cpu"))
    dense.reshape(-1).view(torch.uint8).numpy()[:] = tensor_bytes(tensor)
    assert torch.equal(rebuilt, tensor)
    assert rebuilt.dtype == tensor.dtype


def test_a_permuted_tensor_arrives_permuted() -> None:
    tensor = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    _, rebuilt = empty_like_layout(tensor_layout(tensor), device=torch.device("cpu"))
    assert rebuilt.stride() == tensor.stride()


def test_half_the_channels_arrive_channels_last_without_gaps() -> None:
    tensor = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last).chunk(2, dim=1)[1]
    _, rebuilt = empty_like_layout(tensor_layout(tensor), device=torch.device("cpu"))
    assert rebuilt.is_contiguous(memory_format=torch.channels_last)
