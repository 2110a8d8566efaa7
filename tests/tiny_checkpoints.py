"""Tiny random checkpoints in diffusers layout: real classes, real files, a second to make."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "moving",
    "left",
    "right",
    "up",
    "down",
    "on",
    "black",
]


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows `WORDS`."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def make_wan_transformer(*, num_layers: int = 2, seed: int = 0) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        text_dim=32, freq_dim=32, ffn_dim=64, num_layers=num_layers, rope_max_seq_len=32,
    )  # fmt: skip


def make_tiny_wan_pipeline(*, num_layers: int = 2, two_transformers: bool = False) -> WanPipeline:
    """A WanPipeline whose weights are random and whose pictures are noise; 16 x 16 pixels and up, multiples of 16."""
    torch.manual_seed(0)
    tokenizer = make_word_tokenizer()
    encoder_config = UMT5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(encoder_config).eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=make_wan_transformer(num_layers=num_layers).eval(),
        transformer_2=make_wan_transformer(num_layers=num_layers, seed=1).eval() if two_transformers else None,
        boundary_ratio=0.5 if two_transformers else None,
    )


def make_tiny_wan(folder: Path, *, num_layers: int = 2, two_transformers: bool = False) -> Path:
    """Writes a tiny random Wan checkpoint into `folder` and returns it."""
    make_tiny_wan_pipeline(num_layers=num_layers, two_transformers=two_transformers).save_pretrained(folder)
    return folder
