"""Whole components take turns on a pretended device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dist.weights.compare import build, leaves
from tests.dist.weights.tiny_models import find_model
from tests.tiny_checkpoints import make_tiny_wan_pipeline
from tests.unit.workers_weights.test_streaming import LazyEngine
from workers.stream_engine import HostMemory, HostMemoryError
from workers.stream_layout import StreamingRefusedError
from workers.stream_offload import OffloadedModule, OffloadGroup, apply_offload

CPU = torch.device("cpu")


class WaitingEngine(LazyEngine):
    """Copies happen when somebody waits; buffers come and go, so that their tickets are not compared."""

    def start_copy(self, target: Tensor, source: Tensor, *, after: Any) -> Any:
        assert after is not None, "the copy must wait for what was computed last"
        target.fill_(255)
        self.pending.append((target, source))
        return len(self.pending) - 1

    def mark(self) -> Any:
        return "mark"


def offload(module: nn.Module, group: OffloadGroup) -> OffloadedModule:
    return apply_offload(module, device=CPU, group=group, engine=WaitingEngine())


@pytest.mark.parametrize("name", ["T5EncoderModel", "UMT5EncoderModel", "CLIPTextModel", "UNet2DConditionModel"])
def test_result_is_unchanged_to_the_bit_after_each_return(name: str) -> None:
    model = find_model(name)
    torch.manual_seed(0)
    module = build(model)
    with torch.inference_mode():
        expected = leaves(module(**model.inputs()))
        handle = offload(module, OffloadGroup())
        assert handle.host_bytes >= sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
        for _ in range(2):
            results = leaves(module(**model.inputs()))
            assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True))
            handle.unload()
    assert handle.num_copies == 2


def test_decode_and_encode_bring_it_too() -> None:
    vae = make_tiny_wan_pipeline().vae
    latents = torch.randn(1, 4, 1, 2, 2)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        handle = offload(vae, OffloadGroup())
        assert not handle.is_loaded
        assert torch.equal(vae.decode(latents).sample, expected)
    assert handle.is_loaded


def test_a_child_called_alone_brings_the_whole() -> None:
    model = find_model("T5EncoderModel")
    torch.manual_seed(0)
    module = build(model)
    with torch.no_grad():
        expected = module.encoder(**model.inputs())[0]
        handle = offload(module, OffloadGroup())
        assert torch.equal(module.encoder(**model.inputs())[0], expected)
    assert handle.is_loaded


def test_members_of_a_group_take_turns() -> None:
    group = OffloadGroup()
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    handles = [offload(module, group) for module in (first, second)]
    first(torch.ones(2))
    assert [handle.is_loaded for handle in handles] == [True, False]
    second(torch.ones(2))
    assert [handle.is_loaded for handle in handles] == [False, True]
    second(torch.ones(2))
    assert handles[1].num_copies == 1
    group.unload_all()
    assert not any(handle.is_loaded for handle in handles)


def test_prefetched_copy_is_awaited_by_the_call() -> None:
    module = nn.Linear(2, 2)
    expected = module(torch.ones(2))
    handle = offload(module, OffloadGroup())
    handle.prefetch()
    assert torch.equal(module(torch.ones(2)), expected)
    assert handle.num_copies == 1


def test_unloaded_weights_lie_in_host_memory_once() -> None:
    module = nn.Linear(64, 64)
    host = HostMemory()
    handle = apply_offload(module, device=CPU, group=OffloadGroup(), host=host)
    address = module.weight.data_ptr()
    module(torch.ones(64))
    assert module.weight.data_ptr() != address
    handle.unload()
    assert module.weight.data_ptr() == address
    assert handle.host_bytes == host.taken_bytes == 64 * 64 * 4 + 256


def test_budget_and_moves_are_refused() -> None:
    with pytest.raises(HostMemoryError):
        apply_offload(nn.Linear(9, 9), device=CPU, group=OffloadGroup(), host=HostMemory(max_bytes=10))
    module = nn.Linear(2, 2)
    offload(module, OffloadGroup())
    with pytest.raises(StreamingRefusedError, match="cannot be moved or cast"):
        module.half()
