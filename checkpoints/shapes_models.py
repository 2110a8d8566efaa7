"""The components of `checkpoints/shapes`: how they are built, run in training and written to disk.

All four are diffusers' and transformers' own classes. Training runs two of them by another road that
computes the same numbers with fewer, larger kernels (`verify_training_passes` compares them):

- `AutoencoderKLWan` works through a clip in chunks of 1, 4, 4, ... frames and carries caches from chunk to
  chunk. `encode_clip` and `decode_clip` take the whole clip at once.
- `WanPipeline` pads every prompt to 512 tokens with zero vectors, which all become the same key and value.
  `n` equal keys weigh as much in a softmax as one key whose logit is raised by `log(n)`, so training
  keeps 24 positions and adds that logarithm to the last (`PaddedCrossAttention`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from shapes_data import EOS_ID, PAD_ID, PROMPT_TOKENS, UNK_ID, VOCABULARY, Attributes
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

LATENT_CHANNELS = 12
LATENT_SIZE = 8
LATENT_FRAMES = 3
TEXT_DIM = 64
CONTEXT_TOKENS = PROMPT_TOKENS + 1
"""The prompt's tokens, and one that stands for all the padding."""
DEFAULTS: dict[str, int | float] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "num_frames": 9,
    "fps": 8,
}
FLOW_SHIFT = 2.0


def build_autoencoder() -> AutoencoderKLWan:
    """Factor 8 in space (2 of it by folding pixels into channels) and 4 in time; residual shortcuts as in Wan 2.2."""
    return AutoencoderKLWan(
        base_dim=24,
        decoder_base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_denoiser() -> WanTransformer3DModel:
    """Five blocks of width 160; gates and output start at zero, so that the first step predicts nothing."""
    denoiser = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=40,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=512,
        num_layers=5,
        rope_max_seq_len=64,
    )
    nn.init.zeros_(denoiser.condition_embedder.time_proj.weight)
    nn.init.zeros_(denoiser.condition_embedder.time_proj.bias)
    nn.init.zeros_(denoiser.proj_out.weight)
    nn.init.zeros_(denoiser.proj_out.bias)
    return denoiser


def build_text_encoder() -> UMT5EncoderModel:
    """Two layers of width 64 over a vocabulary of words, trained together with the denoiser."""
    config = UMT5Config(
        vocab_size=len(VOCABULARY),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=0,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=PAD_ID,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    return UMT5EncoderModel(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: lower case, punctuation ignored, unknown words as `<unk>`, always an end mark.

    The end mark keeps the empty prompt from being empty, as attention over no token at all is undefined.
    """
    words = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=VOCABULARY[UNK_ID]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\w\s]+"), " "),
            normalizers.Replace(Regex(r"\bgrey\b"), "gray"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = VOCABULARY[EOS_ID]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, EOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=VOCABULARY[PAD_ID],
        eos_token=end,
        unk_token=VOCABULARY[UNK_ID],
        model_max_length=512,
    )


# The autoencoder over a whole clip.


def encode_clip(autoencoder: AutoencoderKLWan, pixels: Tensor) -> Tensor:
    """Mean and log variance, (B, 2 C, 1 + (F - 1) / 4, 8, 8), of clips (B, 3, F, 64, 64)."""
    encoder = autoencoder.encoder
    hidden = encoder.conv_in(_fold(pixels, autoencoder.config.patch_size))
    for block in encoder.down_blocks:
        shortcut = block.avg_shortcut(hidden)
        for resnet in block.resnets:
            hidden = resnet(hidden)
        if block.downsampler is not None:
            hidden = _down(block.downsampler, hidden)
        hidden = hidden + shortcut
    hidden = encoder.mid_block(hidden)
    hidden = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(hidden)))
    moments: Tensor = autoencoder.quant_conv(hidden)
    return moments


def decode_clip(autoencoder: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels (B, 3, F, 64, 64), not clamped: a clamped pixel would get no gradient."""
    decoder = autoencoder.decoder
    hidden = decoder.mid_block(decoder.conv_in(autoencoder.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        shortcut = None if block.avg_shortcut is None else block.avg_shortcut(hidden, first_chunk=True)
        for resnet in block.resnets:
            hidden = resnet(hidden)
        if block.upsampler is not None:
            hidden = _up(block.upsampler, hidden)
        if shortcut is not None:
            hidden = hidden + shortcut
    hidden = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden)))
    return _unfold(hidden, autoencoder.config.patch_size)


def _fold(pixels: Tensor, patch: int) -> Tensor:
    batch, channels, frames, height, width = pixels.shape
    cells = pixels.reshape(batch, channels, frames, height // patch, patch, width // patch, patch)
    return cells.permute(0, 1, 6, 4, 2, 3, 5).reshape(batch, -1, frames, height // patch, width // patch)


def _unfold(cells: Tensor, patch: int) -> Tensor:
    batch, _, frames, height, width = cells.shape
    pixels = cells.reshape(batch, -1, patch, patch, frames, height, width).permute(0, 1, 4, 5, 3, 6, 2)
    return pixels.reshape(batch, -1, frames, height * patch, width * patch)


def _each_frame(module: nn.Module, hidden: Tensor) -> Tensor:
    batch, _, frames = hidden.shape[:3]
    flat: Tensor = module(hidden.transpose(1, 2).flatten(0, 1))
    apart: Tensor = flat.unflatten(0, (batch, frames))
    return apart.transpose(1, 2)


def _down(layer: Any, hidden: Tensor) -> Tensor:
    """Halves space, and time after the first frame."""
    hidden = _each_frame(layer.resample, hidden)
    if layer.mode != "downsample3d" or hidden.shape[2] == 1:
        return hidden
    return torch.cat([hidden[:, :, :1], layer.time_conv(hidden)], dim=2)


def _up(layer: Any, hidden: Tensor) -> Tensor:
    """Doubles space, and time after the first frame."""
    if layer.mode == "upsample3d" and hidden.shape[2] > 1:
        later = layer.time_conv(hidden[:, :, 1:])
        pairs = later.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        hidden = torch.cat([hidden[:, :, :1], pairs], dim=2)
    return _each_frame(layer.resample, hidden)


# The denoiser over short prompts.


class PaddedCrossAttention:
    """Attention processor of `attn2` in training: `logit_bias` stands in for the prompt's padding.

    `logit_bias` is (B, 1, 1, CONTEXT_TOKENS): 0 for a token, minus infinity for none, and the logarithm of
    the number of padding tokens at the last position.
    """

    logit_bias: Tensor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002 (the interface of diffusers)
        rotary_emb: Any = None,  # noqa: ARG002
    ) -> Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        scores = query.to(value.dtype) @ key.to(value.dtype).transpose(2, 3) / math.sqrt(query.shape[-1])
        weights = (scores.float() + self.logit_bias).softmax(dim=-1).to(value.dtype)
        output: Tensor = attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
        return output


def install_training_attention(denoiser: WanTransformer3DModel) -> PaddedCrossAttention:
    """Makes all cross attention of a denoiser in training read one bias; undone by saving and loading."""
    processor = PaddedCrossAttention()
    for block in denoiser.blocks:
        block.attn2.set_processor(processor)
    return processor


def encode_tokens(text_encoder: UMT5EncoderModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes short prompts as the pipeline encodes padded ones.

    Args:
        text_encoder: The encoder.
        tokens: (B, PROMPT_TOKENS) ids; padding follows the end mark.

    Returns:
        Embeddings (B, CONTEXT_TOKENS, TEXT_DIM), zero where no token is, and the bias (B, 1, 1, CONTEXT_TOKENS)
        without the logarithm: 0 for tokens and for the last position, minus infinity elsewhere.
    """
    present = tokens != PAD_ID
    hidden_by = torch.where(present, 0.0, -1e4)
    mask = hidden_by[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
    embeddings = text_encoder(tokens, mask).last_hidden_state * present[..., None]
    return F.pad(embeddings, (0, 0, 0, 1)), F.pad(hidden_by, (0, 1))[:, None, None, :]


def padding_bias(bias: Tensor, padded_length: Tensor | float) -> Tensor:
    """Adds the logarithm of the number of padding tokens at the last position of `encode_tokens`'s bias."""
    num_tokens = (bias[..., :-1] == 0.0).sum(-1, keepdim=True)
    num_padding = (padded_length - num_tokens).clamp(min=1.0)
    return torch.cat([bias[..., :-1], num_padding.log().to(bias.dtype)], dim=-1)


@torch.no_grad()
def verify_training_passes() -> dict[str, float]:
    """Largest relative difference between the training passes and the library's, on random weights."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder().eval()
    clip = torch.rand(2, 3, 9, 64, 64) * 2 - 1
    moments = encode_clip(autoencoder, clip)
    latents = moments[:, :LATENT_CHANNELS]
    decoded = decode_clip(autoencoder, latents).clamp(-1, 1)

    pipeline = build_pipeline(autoencoder, build_denoiser(), build_text_encoder())
    denoiser = pipeline.transformer
    for parameter in denoiser.parameters():
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.05)
    prompt = Attributes("red", "star", "white", motion="right", size="small").prompt()
    embeddings, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
    noisy = torch.randn(1, LATENT_CHANNELS, LATENT_FRAMES, LATENT_SIZE, LATENT_SIZE)
    timestep = torch.tensor([700.0])
    expected = denoiser(noisy, timestep, embeddings).sample
    tokens = torch.tensor(
        pipeline.tokenizer([prompt], padding="max_length", max_length=PROMPT_TOKENS).input_ids, dtype=torch.long
    )
    short, bias = encode_tokens(pipeline.text_encoder, tokens)
    install_training_attention(denoiser).logit_bias = padding_bias(bias, 512.0)
    actual = denoiser(noisy, timestep, short).sample

    def difference(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    return {
        "encode": difference(moments, autoencoder._encode(clip)),
        "decode": difference(decoded, autoencoder.decode(latents).sample),
        "text": difference(short[:, :PROMPT_TOKENS], embeddings[:, :PROMPT_TOKENS]),
        "denoise": difference(actual, expected),
    }


# On disk.


def build_pipeline(
    autoencoder: AutoencoderKLWan, denoiser: WanTransformer3DModel, text_encoder: UMT5EncoderModel
) -> WanPipeline:
    """The pipeline with the scheduler that gave the best pictures at few steps."""
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder,
        vae=autoencoder,
        scheduler=build_scheduler("unipc", shift=FLOW_SHIFT),
        transformer=denoiser,
    )


def build_scheduler(kind: str, *, shift: float) -> FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler:
    """`euler` or `unipc`; a larger `shift` spends more of the steps on heavy noise."""
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )


def save_checkpoint(pipeline: WanPipeline, directory: Path) -> int:
    """Writes the pipeline in float16 and the recommended defaults; returns the bytes on disk.

    float16 rather than bfloat16: all weights are small, and its three more bits of mantissa cost nothing.
    """
    pipeline.to(dtype=torch.float16).save_pretrained(directory, safe_serialization=True)
    (directory / "heliograph.json").write_text(json.dumps({"defaults": DEFAULTS}, indent=2) + "\n")
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
