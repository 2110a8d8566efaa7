"""Placing components: norms, kernels, compilation, and the plan's next choice where host memory is refused."""

import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import AutoencoderMixin

from planner.plan import AttentionBackend, Compilation, Decoding, Plan, Residency, ResidencyChoice
from tests.plans import make_wan_plan
from tests.tiny_checkpoints import make_tiny_wan
from workers.calls import ComponentLoaded
from workers.components import RankComponents, load_components
from workers.errors import LoadError
from workers.norms import CachedFP32LayerNorm
from workers.stream_engine import HostMemoryError

CPU = torch.device("cpu")
STREAMED = {"transformer": Residency.LAYERWISE, "text_encoder": Residency.LAYERWISE}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("wan"), num_layers=4)


def load(plan: Plan) -> tuple[RankComponents, dict[str, ComponentLoaded]]:
    components = RankComponents()
    events = load_components(plan, components, world_rank=0, device=CPU, mesh=None)
    return components, {event.name: event for event in events}


def tight(plan: Plan, host_capacity_bytes: int, *fallbacks: dict[str, str]) -> Plan:
    """The plan on a node with so little host memory, and with these assignments to fall back to."""
    memory = plan.memory.model_copy(update={"host_capacity_bytes": host_capacity_bytes})
    return plan.model_copy(
        update={"memory": memory, "fallbacks": tuple({n: choice(t) for n, t in f.items()} for f in fallbacks)}
    )


def choice(text: str) -> ResidencyChoice:
    kind, _, k = text.partition(":")
    return ResidencyChoice(residency=Residency(kind), num_resident_blocks=int(k) if k else None)


def call(module: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return module(  # type: ignore[no-any-return]
            hidden_states=torch.randn(1, 4, 1, 8, 8, generator=generator),
            timestep=torch.tensor([5]),
            encoder_hidden_states=torch.randn(1, 7, 32, generator=generator),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("kind", [Residency.RESIDENT, Residency.LAYERWISE, Residency.OFFLOAD])
def test_norms_of_denoisers_are_cached_wherever_the_weights_are(wan: Path, kind: Residency) -> None:
    components, _ = load(make_wan_plan(wan, residency={"transformer": kind}))
    norms = [m for m in components.modules["transformer"].modules() if isinstance(m, CachedFP32LayerNorm)]
    assert norms
    plain, _ = load(make_wan_plan(wan))
    assert torch.equal(call(components.modules["transformer"]), call(plain.modules["transformer"]))


def test_first_blocks_are_fetched_when_a_request_starts(wan: Path) -> None:
    components, _ = load(make_wan_plan(wan, residency=STREAMED))
    assert list(components.streamed) == ["text_encoder", "transformer"]
    handle = components.streamed["transformer"]
    components.start_request()
    assert handle.counts.copies == 2
    for _ in range(3):
        call(components.modules["transformer"])
    assert handle.counts.misses == 0


def test_next_request_finds_the_first_blocks_there(wan: Path) -> None:
    components, _ = load(make_wan_plan(wan, residency=STREAMED))
    handle = components.streamed["transformer"]
    components.start_request()
    call(components.modules["transformer"])
    copies = handle.counts.copies
    components.start_request()
    assert handle.counts.copies - copies == 1  # one buffer of two was fetched by the last step
    call(components.modules["transformer"])
    assert handle.counts.misses == 0


def test_refused_host_memory_takes_the_plans_next_choice_and_says_so(
    wan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    all_resident = {"transformer": "resident", "text_encoder": "resident", "vae": "resident"}
    plan = tight(make_wan_plan(wan, residency=STREAMED), 1000, all_resident)
    with caplog.at_level(logging.WARNING, logger="workers"):
        components, events = load(plan)
    assert components.streamed == {}
    assert events["transformer"].residency is Residency.RESIDENT
    assert "keep more blocks resident" in str(events["transformer"].fallback_reason)
    assert "The plan's next choice is taken: resident" in caplog.text
    assert events["text_encoder"].residency is Residency.RESIDENT
    plain, _ = load(make_wan_plan(wan))
    assert torch.equal(call(components.modules["transformer"]), call(plain.modules["transformer"]))


def test_fewer_streamed_blocks_are_a_choice_that_pins_less(wan: Path) -> None:
    plan = make_wan_plan(wan, residency={"transformer": Residency.LAYERWISE})
    components, _ = load(plan)
    a_block = components.streamed["transformer"].host_bytes // 4
    kept = {"text_encoder": "resident", "vae": "resident"}
    more_of_it = {"transformer": "layerwise:0", **kept}
    less_of_it = {"transformer": "layerwise:2", **kept}
    _, events = load(tight(plan, 3 * a_block, more_of_it, less_of_it))
    assert events["transformer"].residency is Residency.LAYERWISE
    assert events["transformer"].fallback_reason


def test_without_another_choice_the_start_fails_with_the_numbers(wan: Path) -> None:
    offloaded = {"transformer": "offload", "text_encoder": "resident", "vae": "resident"}
    plan = tight(make_wan_plan(wan, residency=STREAMED), 1000, offloaded)
    with pytest.raises(HostMemoryError, match=r"transformer cannot be layerwise:0, and the plan has no other choice"):
        load(plan)


def test_a_choice_that_contradicts_what_is_in_place_is_not_taken(wan: Path) -> None:
    plan = make_wan_plan(wan, residency={"text_encoder": Residency.LAYERWISE})
    contradicting = {"transformer": "offload", "text_encoder": "resident", "vae": "resident"}
    with pytest.raises(HostMemoryError, match="text_encoder cannot be layerwise"):
        load(tight(plan, 1000, contradicting))


def test_offload_is_within_the_host_budget_too(wan: Path) -> None:
    plan = make_wan_plan(wan, residency={"vae": Residency.OFFLOAD})
    kept = {"transformer": "resident", "text_encoder": "resident", "vae": "resident"}
    _, events = load(tight(plan, 1000, kept))
    assert events["vae"].residency is Residency.RESIDENT


def test_the_kernel_asked_for_is_set_on_the_denoiser_alone(wan: Path) -> None:
    plan = make_wan_plan(wan).model_copy(update={"attention_backends": (AttentionBackend.MATH,)})
    components, _ = load(plan)
    transformer: Any = components.modules["transformer"]
    assert {part.processor._attention_backend for part in transformer.modules() if hasattr(part, "processor")} == {
        "_native_math"
    }
    assert torch.allclose(call(transformer), call(load(make_wan_plan(wan))[0].modules["transformer"]), atol=1e-5)


def test_kernels_that_do_not_run_here_are_passed_over(wan: Path, caplog: pytest.LogCaptureFixture) -> None:
    order = (AttentionBackend.CUDNN, AttentionBackend.NATIVE)
    with caplog.at_level(logging.INFO, logger="workers"):
        load(make_wan_plan(wan).model_copy(update={"attention_backends": order}))
    assert "attention is not computed by cudnn" in caplog.text
    assert "torch's own choice" in caplog.text


def test_a_kernel_that_was_asked_for_and_does_not_run_is_an_error(wan: Path) -> None:
    plan = make_wan_plan(wan).model_copy(update={"attention_backends": (AttentionBackend.CUDNN,)})
    with pytest.raises(LoadError, match="attention_backend cudnn does not work for WanTransformer3DModel"):
        load(plan)


def test_blocks_are_compiled_where_the_plan_says_so(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import residency

    compiled: list[str] = []
    monkeypatch.setattr(residency, "compile_blocks", lambda module: compiled.append(type(module).__name__))
    load(make_wan_plan(wan))
    assert compiled == []
    load(make_wan_plan(wan).model_copy(update={"compile": Compilation.BLOCKS}))
    assert compiled == ["WanTransformer3DModel"]


# Decoding


def decode(vae: Any, side: int) -> torch.Tensor:
    """Pixels of a square of latents, so large that it is cut in tiles."""
    latents = torch.randn(1, vae.config.z_dim, 1, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return vae.decode(latents, return_dict=False)[0]  # type: ignore[no-any-return]


def test_plan_with_tiles_decodes_as_the_library_does_in_tiles(wan: Path) -> None:
    plan = make_wan_plan(wan)
    whole = load(plan)[0].modules["vae"]
    tiled = load(plan.model_copy(update={"decoding": Decoding.TILES}))[0].modules["vae"]
    reference = diffusers.AutoencoderKLWan.from_pretrained(wan / "vae").eval()
    assert torch.equal(decode(whole, 48), decode(reference, 48))
    reference.enable_tiling()
    assert torch.equal(decode(tiled, 48), decode(reference, 48))
    assert not torch.equal(decode(tiled, 48), decode(whole, 48))


def test_autoencoder_that_knows_no_tiles_is_refused(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(diffusers.AutoencoderKLWan, "enable_tiling")
    monkeypatch.delattr(AutoencoderMixin, "enable_tiling")
    with pytest.raises(LoadError, match="vae: AutoencoderKLWan cannot decode in tiles; use decoding whole"):
        load(make_wan_plan(wan).model_copy(update={"decoding": Decoding.TILES}))
