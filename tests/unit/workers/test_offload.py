from typing import Any

import pytest
import torch

from tests.tiny_checkpoints import make_tiny_wan_pipeline
from workers.offload import Offloads
from workers.stream_layout import StreamingRefusedError

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "height": 32,
    "width": 32,
    "num_frames": 1,
    "num_inference_steps": 2,
}


def run(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**ARGUMENTS, generator=torch.Generator().manual_seed(3)).frames


def addresses(module: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def test_offloaded_components_give_the_same_result_and_are_in_for_their_stage_only() -> None:
    pipeline = make_tiny_wan_pipeline()
    expected = run(pipeline)
    offloads = Offloads(torch.device("cpu"))
    names = ("text_encoder", "transformer", "vae")
    for name in names:
        offloads.add(getattr(pipeline, name))
    waiting = {name: addresses(getattr(pipeline, name)) for name in names}
    result = run(pipeline)
    assert abs(result - expected).max() < 1e-5
    moved = [name for name in names if addresses(getattr(pipeline, name)) != waiting[name]]
    assert moved == ["vae"]  # the last that was called
    offloads.evict_others()
    assert addresses(pipeline.vae) == waiting["vae"]


def test_a_component_says_where_its_inputs_belong_wherever_its_weights_are() -> None:
    encoder = make_tiny_wan_pipeline().text_encoder
    kind = type(encoder)
    Offloads(torch.device("meta")).add(encoder)
    assert encoder.device == torch.device("meta")
    assert isinstance(encoder, kind)
    assert type(encoder).__name__ == kind.__name__


def test_quantized_weights_are_refused() -> None:
    module = torch.nn.Linear(4, 4)
    module.weight = torch.nn.Parameter(torch.nn.Buffer(torch.ones(4, 4)).as_subclass(Packed), requires_grad=False)
    with pytest.raises(StreamingRefusedError):
        Offloads(torch.device("cpu")).add(module)


class Packed(torch.Tensor):
    """Stands for a quantized tensor: a subclass whose values are not its bytes."""
