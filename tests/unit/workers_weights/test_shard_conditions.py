import pytest
import torch
from diffusers import FluxTransformer2DModel, SanaTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from workers.errors import LoadError
from workers.shard_conditions import BoundaryRule, block_of_class, clean_name, numbered_entry_of, resolve_boundaries


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("transformer_blocks.0", True),
        ("transformer_blocks.12", True),
        ("model.transformer_blocks.3", True),
        ("transformer_blocks", False),
        ("transformer_blocks.0.attn", False),
        ("transformer_blocks.0.ff.net.0", False),
        ("single_transformer_blocks.0", False),
        ("my_transformer_blocks.0", False),
        ("transformer_blocks.0a", False),
        ("_fsdp_wrapped_module.transformer_blocks._orig_mod.0", True),
    ],
)
def test_only_direct_numbered_entries_match(name: str, matches: bool) -> None:
    assert numbered_entry_of("transformer_blocks")(name, nn.Identity()) is matches


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("blocks.0", True),
        ("layers.5", True),
        ("encoder.block.1", True),
        ("encoder.block.1.layer.0", False),
        ("decoder.block.1", False),
    ],
)
def test_a_set_of_containers_matches_entries_of_each(name: str, matches: bool) -> None:
    assert numbered_entry_of("blocks", "layers", "encoder.block")(name, nn.Identity()) is matches


def test_dots_in_a_container_are_literal() -> None:
    assert not numbered_entry_of("encoder.block")("encoder_block.0", nn.Identity())


def test_block_classes_match_numbered_entries_only() -> None:
    condition = block_of_class("Linear")
    assert condition("blocks.0", nn.Linear(1, 1))
    assert not condition("patch_embed", nn.Linear(1, 1))
    assert not condition("blocks.0", nn.Conv1d(1, 1, 1))


def test_names_lose_wrapper_parts() -> None:
    assert clean_name("_orig_mod.blocks.0._fsdp_wrapped_module.attn") == "blocks.0.attn"


class Named(nn.Module):
    """A model with two containers and whatever class attributes a test gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])
        self.custom = nn.ModuleList([nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1)])


def test_explicit_containers_come_first() -> None:
    model = Named()
    model._repeated_blocks = ["Linear"]
    found = resolve_boundaries(model, explicit={"Named": ("custom",)})
    assert (found.rule, found.names) == (BoundaryRule.EXPLICIT, ("custom.0", "custom.1"))


def test_classes_come_before_common_containers() -> None:
    model = Named()
    model._no_split_modules = ["Conv1d"]
    found = resolve_boundaries(model)
    assert (found.rule, found.detail, found.names) == (BoundaryRule.CLASSES, ("Conv1d",), ("custom.0", "custom.1"))


def test_common_containers_come_last() -> None:
    model = Named()
    model._no_split_modules = ["Absent"]
    found = resolve_boundaries(model)
    assert (found.rule, found.detail, found.names) == (BoundaryRule.CONTAINERS, ("layers",), ("layers.0",))


def test_a_model_without_blocks_is_refused_by_name() -> None:
    with pytest.raises(LoadError, match="Linear has no blocks"):
        resolve_boundaries(nn.Linear(2, 2))


def test_nested_blocks_keep_the_outermost_on_request() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
    found = resolve_boundaries(unet)
    assert "up_blocks.1" in found.outermost()
    assert "up_blocks.1.attentions.0.transformer_blocks.0" in found.names
    assert "up_blocks.1.attentions.0.transformer_blocks.0" not in found.outermost()


@pytest.mark.parametrize(
    ("build", "names", "rule"),
    [
        (
            lambda: SanaTransformer2DModel(num_layers=2, num_attention_heads=2, attention_head_dim=8),
            ("transformer_blocks.0", "transformer_blocks.1"),
            "classes: SanaTransformerBlock",
        ),
        (
            lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1, num_attention_heads=2),
            ("transformer_blocks.0", "single_transformer_blocks.0"),
            "classes: FluxTransformerBlock, FluxSingleTransformerBlock",
        ),
        (
            lambda: T5EncoderModel(T5Config(num_layers=2, d_model=8, d_kv=4, num_heads=2, d_ff=8, vocab_size=16)),
            ("encoder.block.0", "encoder.block.1"),
            "explicit: encoder.block",
        ),
        (
            lambda: CLIPTextModel(
                CLIPTextConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=8)
            ),
            None,
            "classes: CLIPEncoderLayer",
        ),
    ],
    ids=["sana", "flux", "t5", "clip"],
)
def test_real_models(build, names: tuple[str, ...] | None, rule: str) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        found = resolve_boundaries(build())
    assert str(found) == rule
    assert len(found.names) == 2
    assert names is None or found.names == names
