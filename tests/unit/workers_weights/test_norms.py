"""Cached float32 norms: reused while nothing changes, dropped on each cause, invisible to state and autograd."""

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3NemotronRMSNorm
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21ZeroCenterRMSNorm
from torch import Tensor, nn

from tests.dist.weights.compare import build, leaves
from tests.dist.weights.tiny_models import find_model
from workers import norms
from workers.norms import cache_norms, cached_float32

VALUES = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
NORMS = [
    lambda: FP32LayerNorm(8),
    lambda: FP32LayerNorm(8, bias=False),
    lambda: FP32LayerNorm(8, elementwise_affine=False),
    lambda: Cosmos3NemotronRMSNorm(8, 1e-6),
    lambda: QwenImage21ZeroCenterRMSNorm(8),
]


def random_norm(make: Callable[[], nn.Module] = NORMS[0]) -> nn.Module:
    norm = make().to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data.normal_(generator=generator)
    return norm


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Each cast that is made is noted here."""
    made: list[Tensor] = []
    original = norms._Cast.__init__

    def noting(self: norms._Cast, parameter: Tensor, device: torch.device) -> None:
        made.append(parameter)
        original(self, parameter, device)

    monkeypatch.setattr(norms._Cast, "__init__", noting)
    return made


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_result_is_the_originals_to_the_bit(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    original, cached = random_norm(make).to(dtype), random_norm(make).to(dtype)
    assert cache_norms(cached) == 1
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(cached(VALUES.to(dtype)), original(VALUES.to(dtype)))


def test_casts_are_made_once(casts: list[Tensor]) -> None:
    norm = random_norm()
    cache_norms(norm)
    with torch.no_grad():
        for _ in range(5):
            norm(VALUES)
    assert len(casts) == 2  # weight and bias


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: norm.weight.add_(1),
        lambda norm: setattr(norm.weight, "data", norm.weight.data + 1),
        lambda norm: setattr(norm, "weight", nn.Parameter(norm.weight.data + 1)),
        lambda norm: norm.to(torch.float16),
        lambda norm: norm.to(torch.float32).to(torch.bfloat16),
        lambda norm: norm.load_state_dict({name: tensor + 1 for name, tensor in norm.state_dict().items()}),
        lambda norm: norm.load_state_dict(
            {name: tensor + 1 for name, tensor in norm.state_dict().items()}, assign=True
        ),
    ],
    ids=["version", "storage", "parameter", "dtype", "round trip", "load_state_dict", "assigned state_dict"],
)
def test_changed_parameters_drop_the_cache(change: Callable[[nn.Module], object]) -> None:
    norm = random_norm()
    cache_norms(norm)
    with torch.no_grad():
        norm(VALUES)
        change(norm)
        fresh = FP32LayerNorm(8).to(norm.weight.dtype)
        fresh.load_state_dict(norm.state_dict())
        assert torch.equal(norm(VALUES), fresh(VALUES))


def test_storage_at_a_reused_address_is_another_one() -> None:
    """Two storages, one after the other, on the same memory: the cache must not take the new one for the old."""
    norm = random_norm()
    cache_norms(norm)
    memory = bytearray(16)
    addresses = set()
    with torch.no_grad():
        for number in (1.0, 2.0):
            memory[:] = bytes(torch.full((8,), number, dtype=torch.bfloat16).view(torch.uint8).tolist())
            norm.weight.data = torch.frombuffer(memory, dtype=torch.bfloat16)
            addresses.add((norm.weight.data_ptr(), norm.weight._version))
            assert cached_float32(norm, "weight", VALUES.device)[0] == number
    assert len(addresses) == 1, "only the storage may tell them apart"


def test_cache_keeps_no_storage_alive() -> None:
    norm = random_norm()
    cache_norms(norm)
    with torch.no_grad():
        norm(VALUES)
    cast = norm.__dict__["_float32_casts"]["weight"]
    assert not cast.storage.expired()
    norm.weight.data = torch.ones(8, dtype=torch.bfloat16)
    assert cast.storage.expired()


def test_inputs_on_another_device_get_their_own_cast(casts: list[Tensor]) -> None:
    norm = random_norm()
    with torch.no_grad():
        assert cached_float32(norm, "weight", torch.device("cpu")).device.type == "cpu"
        assert cached_float32(norm, "weight", torch.device("meta")).device.type == "meta"
        assert cached_float32(norm, "weight", torch.device("cpu")).device.type == "cpu"
    assert len(casts) == 3


def test_parameters_moved_to_another_device_are_cast_there(casts: list[Tensor]) -> None:
    norm = random_norm()
    with torch.no_grad():
        cached_float32(norm, "weight", torch.device("meta"))
        norm.to("meta")
        cached_float32(norm, "weight", torch.device("meta"))
    assert len(casts) == 2


def test_cache_is_not_in_the_state() -> None:
    norm = random_norm()
    names = set(norm.state_dict())
    cache_norms(norm)
    with torch.no_grad():
        norm(VALUES)
    assert set(norm.state_dict()) == names
    assert {name for name, _ in norm.named_buffers()} == set()


@pytest.mark.parametrize("make", NORMS)
def test_gradients_flow_and_nothing_is_cached(make: Callable[[], nn.Module], casts: list[Tensor]) -> None:
    original, cached = random_norm(make), random_norm(make)
    cache_norms(cached)
    gradients = []
    for norm in (original, cached):
        inputs = VALUES.clone().requires_grad_()
        norm(inputs).float().square().sum().backward()
        gradients.append([inputs.grad, *(parameter.grad for parameter in norm.parameters())])
    assert casts == []
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert torch.equal(ours, theirs)


def test_training_after_cached_inference_sees_new_values() -> None:
    norm = random_norm()
    cache_norms(norm)
    with torch.no_grad():
        before = norm(VALUES)
    norm(VALUES).float().sum().backward()
    torch.optim.SGD(norm.parameters(), lr=1.0).step()
    with torch.no_grad():
        assert not torch.equal(norm(VALUES), before)


def test_float32_parameters_need_no_cast(casts: list[Tensor]) -> None:
    norm = random_norm().float()
    cache_norms(norm)
    with torch.no_grad():
        norm(VALUES)
    assert casts == []


def test_works_in_inference_mode_and_after(casts: list[Tensor]) -> None:
    norm = random_norm()
    cache_norms(norm)
    with torch.inference_mode():
        first = norm(VALUES).clone()
    with torch.no_grad():
        second = norm(VALUES)
    assert torch.equal(first, second)
    assert len(casts) == 2


def test_parameters_without_a_version_are_not_cached(casts: list[Tensor]) -> None:
    with torch.inference_mode():
        norm = random_norm()
        cache_norms(norm)
        norm(VALUES)
        assert casts == []


def test_compiled_norm_is_one_graph() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = random_norm(), random_norm()

        def forward(self, values: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(values)))

    original, model = Two(), Two()
    assert cache_norms(model) == 2
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(VALUES), original(VALUES))
    assert counter.frame_count == 1


def test_a_whole_model_is_unchanged_to_the_bit() -> None:
    model = find_model("WanTransformer3DModel")
    torch.manual_seed(0)
    module = build(model).to(torch.bfloat16)
    inputs = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in model.inputs().items()
    }
    with torch.no_grad():
        expected = leaves(module(**inputs))
        assert cache_norms(module) >= 3
        for _ in range(2):
            for one, other in zip(expected, leaves(module(**inputs)), strict=True):
                assert torch.equal(one, other)
