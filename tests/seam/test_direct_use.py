"""What diffusers' pipelines use of a denoiser past its call; an update of diffusers that adds to it must be looked at.

The leader holds the real module, so such uses run there. None may need weights that are sharded over ranks.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import diffusers

PIPELINES = Path(diffusers.__file__).parent / "pipelines"
DENOISERS = frozenset({"transformer", "transformer_2", "unet", "prior", "dit", "unconditional_transformer"})
PART_OF_ANY_MODULE = frozenset(
    {"__class__", "cache_context", "config", "device", "dtype", "named_parameters", "parameters", "to"}
)

# Plain attributes, and shapes and classes of submodules: the same sharded, streamed or not.
FACTS = frozenset(
    {
        "action_dim", "add_embedding", "attn_processors", "encoder_hid_proj", "head_dim", "in_channels", "inner_dim",
        "is_cache_enabled", "max_seq", "num_heads", "single_transformer_blocks", "transformer_blocks", "visual_cond",
    }
)  # fmt: skip
# Tables computed from arguments, without weights: LTX 2's coordinates, Sana WM's rotary tables, AnyFlow's mask.
TABLES = frozenset({"audio_rope", "build_attention_mask", "build_rotary_emb_for_absolute_positions", "rope"})
# Weights, which every rank keeps whole (workers/shard_conditions.py, READ_DIRECTLY).
WEIGHTS = frozenset({"post_process_latents"})
# Changes that workers/module_watch.py sees, or that followers make themselves when a request starts.
WATCHED = frozenset({"_reset_stateful_cache", "_set_ar_attention", "set_attn_processor"})
# In methods that nobody calls while serving, and in ONNX pipelines.
NOT_SERVED = frozenset(
    {
        "disable_freeu", "down_blocks", "enable_freeu", "fuse_qkv_projections", "mid_block", "model", "named_modules",
        "unfuse_qkv_projections", "up_blocks",
    }
)  # fmt: skip


def test_pipelines_use_of_their_denoisers_what_was_looked_at() -> None:
    found = {
        name
        for path in PIPELINES.rglob("*.py")
        if "deprecated" not in path.parts
        for name in used_attributes(ast.parse(path.read_text()))
    }
    assert found - PART_OF_ANY_MODULE == FACTS | TABLES | WEIGHTS | WATCHED | NOT_SERVED


def used_attributes(tree: ast.Module) -> Iterator[str]:
    """Names `x` in `self.<denoiser>.x`, and in `alias.x` after `alias = self.<denoiser>`."""
    nodes = list(ast.walk(tree))
    aliases = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and is_denoiser(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.Attribute):
            owner = node.value
            if is_denoiser(owner) or (isinstance(owner, ast.Name) and owner.id in aliases):
                yield node.attr


def is_denoiser(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in DENOISERS
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "pipeline", "pipe")
    )
