from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FluxTransformer2DModel, LayerSkipConfig, SkipLayerGuidance
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from tests.dist.weights.tiny_models import find_model
from workers.module_watch import ModuleWatch


@pytest.fixture
def model() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(**find_model("FluxTransformer2DModel").config)


def skip_layers() -> SkipLayerGuidance:
    return SkipLayerGuidance(
        skip_layer_config=LayerSkipConfig([0], fqn="transformer_blocks"),
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    )


def prepare_third_branch(guider: SkipLayerGuidance, model: torch.nn.Module) -> None:
    """The branch whose layers are skipped comes after the conditional and the unconditional one."""
    guider.set_state(step=1, num_inference_steps=4, timestep=torch.tensor(1.0))
    for _ in range(3):
        guider.prepare_models(model)


def test_a_guiders_hooks_are_seen_and_seen_to_go(model: FluxTransformer2DModel) -> None:
    watch, guider = ModuleWatch(model), skip_layers()
    for _ in range(2):  # registries are new the first time only
        prepare_third_branch(guider, model)
        assert watch.change() == "hooks on its blocks"
        guider.cleanup_models(model)
        assert watch.change() is None


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda model: model.set_attn_processor(FluxAttnProcessor()), "its attention processors"),
        (lambda model: model.proj_out.register_forward_hook(lambda *_: None), "hooks on its blocks"),
        (lambda model: model.proj_out.register_forward_pre_hook(lambda *_: None), "hooks on its blocks"),
        (lambda model: setattr(model, "remembered", 3), None),
        (lambda model: ClassifierFreeGuidance().prepare_models(model), None),
    ],
    ids=["processors", "hook", "pre_hook", "attribute", "plain_guider"],
)
def test_changes(model: FluxTransformer2DModel, change: Callable[[Any], object], seen: str | None) -> None:
    watch = ModuleWatch(model)
    assert watch.change() is None
    change(model)
    assert watch.change() == seen


def test_hooks_that_were_there_at_the_start_are_no_change(model: FluxTransformer2DModel) -> None:
    model.proj_out.register_forward_hook(lambda *_: None)
    guider = skip_layers()
    prepare_third_branch(guider, model)
    watch = ModuleWatch(model)
    assert watch.change() is None
    guider.cleanup_models(model)
    assert watch.change() == "hooks on its blocks"


def test_new_entries_of_the_configuration_are_told_once(model: FluxTransformer2DModel) -> None:
    watch = ModuleWatch(model)
    model.register_to_config(guidance_embeds=True)
    assert not watch.has_new_config()
    model.register_to_config(guidance_embeds=False, block_size=2)
    assert watch.has_new_config()
    assert watch.take_new_config() == {"guidance_embeds": False, "block_size": 2}
    assert not watch.has_new_config()
