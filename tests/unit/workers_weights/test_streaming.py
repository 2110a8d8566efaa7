"""Streaming on a pretended device: order, equality, reuse of the ring, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel, WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from tests.dist.weights.compare import build, leaves, load_by_library, write_checkpoint
from tests.dist.weights.tiny_models import all_models, find_model
from tests.tiny_checkpoints import make_wan_transformer
from workers.direct_load import load_component
from workers.shard_conditions import resolve_boundaries
from workers.stream_engine import CpuEngine, HostMemory, HostMemoryError
from workers.stream_layout import StreamingRefusedError, plan_layouts, report_device
from workers.streaming import StreamedModule, apply_streaming, resident_blocks, streaming_place

CPU = torch.device("cpu")


class LazyEngine:
    """A device whose copies happen only when somebody waits, over garbage, and which watches the tickets.

    A computation that does not wait reads garbage; a copy that does not wait for the computation before is caught.
    """

    device = CPU

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.log: list[tuple[str, int]] = []
        self.marks = 0
        self.used: set[int] = set()
        self.marked: dict[int, int] = {}

    def start_copy(self, target: Tensor, source: Tensor, *, after: Any) -> Any:
        assert after == self.marked.get(target.data_ptr()), "the copy must wait for the buffer's last computation"
        assert after is not None or target.data_ptr() not in self.used, "a computation with this buffer was not marked"
        target.fill_(255)
        self.pending.append((target, source))
        self.log.append(("copy", source.data_ptr()))
        return len(self.pending) - 1

    def wait(self, ticket: Any) -> None:
        target, source = self.pending[ticket]
        target.copy_(source)
        self.in_use = target.data_ptr()
        self.used.add(target.data_ptr())
        self.log.append(("wait", source.data_ptr()))

    def mark(self) -> Any:
        self.marks += 1
        self.marked[self.in_use] = self.marks
        return self.marks


class Mixed(nn.Module):
    """Blocks of different sizes and strides, with buffers, ties, and a weight shared with the outside."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList([MixedBlock(size, generator) for size in (3, 8, 1, 5, 2)])
        self.head = nn.Linear(4, 4)
        self.blocks[1].shared = self.head.weight
        self.blocks[3].shared = self.blocks[4].shared
        self.order = order

    def forward(self, values: Tensor) -> Tensor:
        for index in self.order:
            values = self.blocks[index](values)
        return self.head(values)


class MixedBlock(nn.Module):
    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(width, 4, generator=generator).T)
        self.down = nn.Parameter(torch.randn(width, 8, generator=generator)[:, ::2])
        self.tied = self.up
        self.shared = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("offset", torch.randn(4, generator=generator).to(torch.float64), persistent=False)
        self.register_buffer("empty", torch.empty(0))

    def forward(self, values: Tensor) -> Tensor:
        hidden = torch.tanh(values @ self.up) @ self.down * self.scale
        return values + hidden @ self.shared + self.offset.to(values.dtype) + 0 * self.tied.sum()


VALUES = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
@pytest.mark.parametrize("num_resident", [0, 1, 3, 4, 5, 9])
def test_equal_for_blocks_of_all_kinds(depth: int, num_resident: int) -> None:
    expected = Mixed()(VALUES)
    model = Mixed()
    engine = LazyEngine()
    apply_streaming(model, device=CPU, num_resident_blocks=num_resident, prefetch_depth=depth, engine=engine)
    for _ in range(3):
        assert torch.equal(model(VALUES), expected)


@pytest.mark.parametrize("order", [(4, 2, 0, 1, 3), (0, 0, 1, 2, 3, 4, 1), (2, 3)])
@pytest.mark.parametrize("depth", [1, 2])
def test_any_order_is_right_and_learnt_after_one_call(order: tuple[int, ...], depth: int) -> None:
    expected = Mixed(order)(VALUES)
    model = Mixed(order)
    handle = apply_streaming(model, device=CPU, prefetch_depth=depth, engine=LazyEngine())
    assert torch.equal(model(VALUES), expected)
    misses = handle.counts.misses
    for _ in range(3):
        assert torch.equal(model(VALUES), expected)
    if len(set(order)) == len(order):
        assert handle.counts.misses <= misses + 1  # the first step back to the beginning is a guess too


def test_next_steps_first_block_is_copied_while_the_last_computes() -> None:
    model = Mixed()
    engine = LazyEngine()
    handle = apply_streaming(model, device=CPU, prefetch_depth=1, engine=engine)
    host = [block.host.data_ptr() for block in handle._blocks]
    model(VALUES)
    assert handle.counts.misses == 1
    assert engine.log[-2:] == [("wait", host[4]), ("copy", host[0])]
    model(VALUES)
    assert handle.counts.misses == 1
    assert handle.counts.copies == 11


def test_each_block_is_one_copy_a_call() -> None:
    model = Mixed()
    handle = apply_streaming(model, device=CPU, prefetch_depth=2, engine=LazyEngine())
    for _ in range(4):
        model(VALUES)
    assert handle.counts.calls == 20
    assert handle.counts.copies == 20 + 2
    assert handle.counts.misses == 1


def test_prefetch_before_the_call_leaves_no_miss() -> None:
    model = Mixed()
    handle = apply_streaming(model, device=CPU, prefetch_depth=1, engine=LazyEngine())
    handle.prefetch()
    assert handle.counts.copies == 2
    model(VALUES)
    assert handle.counts.misses == 0


def test_a_call_that_failed_half_way_does_not_spoil_the_next() -> None:
    expected = Mixed()(VALUES)
    model = Mixed()
    handle = apply_streaming(model, device=CPU, prefetch_depth=1, engine=LazyEngine())
    model(VALUES)
    with pytest.raises(RuntimeError):
        model.blocks[0](VALUES[:, :3])
    handle.forget()
    for _ in range(2):
        assert torch.equal(model(VALUES), expected)


def test_ring_has_depth_plus_one_buffers_of_the_largest_block() -> None:
    handle = apply_streaming(Mixed(), device=CPU, prefetch_depth=2)
    assert handle.ring_bytes == 3 * max(block.layout.num_bytes for block in handle._blocks)
    assert handle.host_bytes == sum(block.layout.num_bytes for block in handle._blocks)


def test_ring_is_not_larger_than_the_streamed_blocks() -> None:
    handle = apply_streaming(Mixed(), device=CPU, num_resident_blocks=4, prefetch_depth=3)
    assert len(handle._slots) == 1


def test_strides_are_kept_and_gaps_are_not() -> None:
    model = Mixed()
    (layout,) = plan_layouts(model, ["blocks.1"])
    strides = {entry.shape: entry.stride for entry in layout.entries}
    assert strides[torch.Size((4, 8))] == (1, 4)
    assert strides[torch.Size((8, 4))] == (4, 1)
    assert all(entry.offset % 256 == 0 for entry in layout.entries)


def test_shared_tensors_stay_on_the_device_once() -> None:
    model = Mixed()
    layouts = plan_layouts(model, [f"blocks.{index}" for index in range(5)])
    streamed = {id(entry.tensor) for layout in layouts for entry in layout.entries}
    assert id(model.head.weight) not in streamed
    assert id(model.blocks[3].shared) not in streamed
    assert id(model.blocks[0].shared) in streamed
    assert sum(entry.tensor is model.blocks[0].up for entry in layouts[0].entries) == 1


@pytest.mark.parametrize(
    ("num_blocks", "num_resident", "expected"),
    [(8, 0, set()), (8, 2, {2, 6}), (8, 4, {1, 3, 5, 7}), (5, 5, {0, 1, 2, 3, 4}), (3, 9, {0, 1, 2}), (40, 1, {20})],
)
def test_resident_blocks_are_spread_evenly(num_blocks: int, num_resident: int, expected: set[int]) -> None:
    assert resident_blocks(num_blocks, num_resident) == expected


@pytest.mark.parametrize("num_resident", range(1, 40))
def test_gaps_between_resident_blocks_differ_by_at_most_one(num_resident: int) -> None:
    chosen = sorted(resident_blocks(40, num_resident))
    assert len(chosen) == num_resident
    gaps = [later - earlier for earlier, later in zip(chosen, [*chosen[1:], chosen[0] + 40], strict=True)]
    assert max(gaps) - min(gaps) <= 1


STREAMED = [model.class_name for model in all_models() if model.quick]


@pytest.mark.parametrize("name", STREAMED)
def test_real_models_are_equal_to_the_bit(name: str) -> None:
    model = find_model(name)
    torch.manual_seed(0)
    module = build(model)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2)
    with torch.inference_mode():
        expected = leaves(module(**model.inputs()))
        handle = apply_streaming(module, device=CPU, prefetch_depth=1, engine=LazyEngine())
        for _ in range(3):
            results = leaves(module(**model.inputs()))
            assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True))
    assert handle.counts.calls > 0


def test_unet_blocks_run_in_another_order_and_are_learnt() -> None:
    model = find_model("UNet2DConditionModel")
    module = build(model)
    with torch.no_grad():
        handle = apply_streaming(module, device=CPU, prefetch_depth=1, engine=LazyEngine())
        for _ in range(2):
            module(**model.inputs())
        misses = handle.counts.misses
        for _ in range(3):
            module(**model.inputs())
    assert handle.counts.misses == misses


@pytest.mark.parametrize("class_name", ["WanTransformer3DModel", "FluxTransformer2DModel"])
def test_compiled_blocks_stay_whole_graphs(class_name: str) -> None:
    """As many graphs streamed as not, none recompiled from call to call, and the same result."""
    import torch._dynamo.testing

    model = find_model(class_name)
    torch.manual_seed(0)
    plain, streamed = build(model), build(model)
    streamed.load_state_dict(plain.state_dict())
    counts = []
    results = []
    for module, is_streamed in ((plain, False), (streamed, True)):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        for name in resolve_boundaries(module).outermost():
            module.get_submodule(name).compile(backend=counter, fullgraph=True)
        if is_streamed:
            apply_streaming(module, device=CPU, prefetch_depth=1, engine=LazyEngine())
        with torch.no_grad():
            results += [leaves(module(**model.inputs()))[0] for _ in range(3)]
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0
    assert all(torch.equal(result, results[0]) for result in results)


def test_loaded_straight_into_the_flat_buffers(tmp_path: Path) -> None:
    """Read once into host buffers, which the streaming takes over without a copy."""
    model = find_model("WanTransformer3DModel")
    write_checkpoint(model, tmp_path)
    reference = load_by_library(model, tmp_path)
    host = HostMemory()
    loaded = load_component(
        tmp_path,
        library="diffusers",
        class_name="WanTransformer3DModel",
        dtype=torch.float32,
        device=CPU,
        place=streaming_place(device=CPU, num_resident_blocks=1, host=host),
    ).module
    taken = host.taken_bytes
    assert taken > 0
    before = {name: tensor.data_ptr() for name, tensor in loaded.named_parameters() if name.startswith("blocks.0.")}
    handle = apply_streaming(loaded, device=CPU, num_resident_blocks=1, host=host)
    assert host.taken_bytes == taken == handle.host_bytes
    assert {name: dict(loaded.named_parameters())[name].data_ptr() for name in before} == before
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(loaded(**model.inputs())[0], reference(**model.inputs())[0])


def test_host_budget_is_kept() -> None:
    with pytest.raises(HostMemoryError, match="keep more blocks resident"):
        apply_streaming(Mixed(), device=CPU, host=HostMemory(max_bytes=1000))


def test_failure_to_pin_is_an_error_not_a_slow_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import host_map

    class Refusing:
        unregistered = 0

        def is_available(self) -> bool:
            return False

        def cudart(self) -> "Refusing":
            return self

        def cudaHostRegister(self, _pointer: int, _bytes: int, _flags: int) -> int:  # noqa: N802
            return 2

        def cudaHostUnregister(self, _pointer: int) -> None:  # noqa: N802
            self.unregistered += 1

    monkeypatch.setattr(host_map, "cuda", Refusing())
    with pytest.raises(HostMemoryError, match=r"cannot pin .*CUDA error 2"):
        apply_streaming(Mixed(), device=CPU, host=HostMemory(pin=True), engine=CpuEngine())


def test_streamed_modules_are_neither_moved_nor_cast() -> None:
    model = Mixed()
    apply_streaming(model, device=CPU)
    for move in (lambda: model.to(torch.bfloat16), lambda: nn.Sequential(model).half(), lambda: model.to("meta")):
        with pytest.raises(StreamingRefusedError, match="Mixed is streamed or offloaded"):
            move()


def test_quantized_tensors_are_refused_by_name() -> None:
    class Packed(nn.Parameter):
        pass

    model = Mixed()
    model.blocks[2].up = Packed(torch.zeros(4, 1), requires_grad=False)
    with pytest.raises(StreamingRefusedError, match=r"blocks.2.up is a Tensor \(Packed\)"):
        apply_streaming(model, device=CPU)


def test_a_block_called_past_its_hook_sees_host_memory() -> None:
    model = Mixed()
    handle: StreamedModule = apply_streaming(model, device=CPU, prefetch_depth=0)
    model(VALUES)
    host = handle._blocks[0].host
    address = model.blocks[0].up.data_ptr()
    assert host.data_ptr() <= address < host.data_ptr() + host.nbytes


def test_part_of_a_block_that_is_called_past_it_stays_on_the_device() -> None:
    """DiT asks its first block for an embedding before it calls the block."""
    module = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, num_embeds_ada_norm=4,
        norm_num_groups=4,
    )  # fmt: skip
    handle = apply_streaming(module, device=CPU)
    streamed = {id(entry.tensor) for block in handle._blocks for entry in block.layout.entries}
    borrowed = {id(tensor) for tensor in module.transformer_blocks[0].norm1.emb.parameters()}
    assert borrowed
    assert not streamed & borrowed


def test_module_names_the_device_that_it_computes_on() -> None:
    """Pipelines send their inputs to `module.device`; the first parameter may wait on the host."""
    module = make_wan_transformer()
    report_device(module, torch.device("meta"))
    assert module.device == torch.device("meta")
    assert make_wan_transformer().device == CPU


def test_classes_are_untouched() -> None:
    module = make_wan_transformer()
    apply_streaming(module, device=CPU)
    assert isinstance(module, WanTransformer3DModel)
    assert type(module).__name__ == "WanTransformer3DModel"
    assert FluxTransformer2DModel._call_impl is UNet2DConditionModel._call_impl is T5EncoderModel._call_impl
