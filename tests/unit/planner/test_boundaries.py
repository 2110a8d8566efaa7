"""REQUIREMENTS 1: block boundaries from names, and the order of the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.boundaries import (
    COMMON_CONTAINERS,
    find_block,
    is_numbered_entry_of,
    is_numbered_entry_of_any,
    name_templates,
    resolve_block_rule,
)


@pytest.mark.parametrize(
    ("container", "name", "expected"),
    [
        ("transformer_blocks", "transformer_blocks.0", True),
        ("transformer_blocks", "transformer_blocks.17", True),
        ("transformer_blocks", "transformer_blocks.0.attn", False),
        ("transformer_blocks", "transformer_blocks.0.ff.net.0", False),
        ("transformer_blocks", "single_transformer_blocks.0", False),
        ("transformer_blocks", "transformer_blocks", False),
        ("transformer_blocks", "model.transformer_blocks.3", True),
        ("transformer_blocks", "transformer_blocks.x1", False),
        ("transformer_blocks", "transformer_blocks.²", False),
        ("encoder.block", "encoder.block.3", True),
        ("encoder.block", "decoder.block.3", False),
        ("encoder.block", "encoder.block.3.layer.0", False),
        ("down_blocks.*.attentions", "down_blocks.1.attentions.0", True),
        ("down_blocks.*.attentions", "down_blocks.attentions.0", False),
    ],
)
def test_direct_numbered_entries_only(container: str, name: str, expected: bool) -> None:
    assert is_numbered_entry_of(container, name) is expected


@pytest.mark.parametrize("container", COMMON_CONTAINERS)
def test_every_common_container_is_found(container: str) -> None:
    assert is_numbered_entry_of_any(COMMON_CONTAINERS, f"{container}.0")
    assert not is_numbered_entry_of_any(COMMON_CONTAINERS, f"{container}.0.attn")


def test_parameter_lies_in_its_outermost_block() -> None:
    assert find_block("blocks.3.layers.1.weight", containers=("blocks", "layers")) == "blocks.3"
    assert find_block("proj.weight", containers=("blocks",)) is None


def test_stated_containers_win_over_declared_classes() -> None:
    rule = resolve_block_rule(
        "UMT5EncoderModel", ["encoder.block.0.w"], declared=[(("UMT5Block",), ("encoder.block",))]
    )
    assert rule is not None
    assert rule.source == "explicit"


def test_declared_classes_win_over_common_containers() -> None:
    names = ["blocks.0.w", "heads.0.w"]
    rule = resolve_block_rule("X", names, declared=[(("Head",), ("heads",))])
    assert rule is not None
    assert (rule.source, rule.containers) == ("classes", ("heads",))
    assert "Head" in rule.describe()


def test_common_containers_decide_last_and_only_those_present_are_named() -> None:
    rule = resolve_block_rule("X", ["single_blocks.0.w", "double_blocks.1.w"])
    assert rule is not None
    assert (rule.source, rule.containers) == ("containers", ("double_blocks", "single_blocks"))


def test_nothing_matches() -> None:
    assert resolve_block_rule("X", ["conv.weight", "blocks.weight"]) is None


PARTS = st.sampled_from(["blocks", "encoder", "block", "layers", "w", "0", "7", "12", "1a", "²"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=6).map(".".join), max_size=8))
def test_what_holds_for_a_template_holds_for_its_names(names: list[str]) -> None:
    containers = ("blocks", "encoder.block", "layers.*.w", "layers")
    templates = name_templates(names)
    for name, template in zip(names, templates, strict=True):
        found, of_template = (find_block(text, containers=containers) for text in (name, template))
        depth = of_template.count(".") + 1 if of_template else 0
        assert found == (".".join(name.split(".")[:depth]) if depth else None)
    assert resolve_block_rule("X", names) == resolve_block_rule("X", templates)
