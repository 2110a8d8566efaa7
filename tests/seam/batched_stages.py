"""Pipelines that are one stage of several (prior, decoder, upscaler) or work on pixels."""

from typing import Any

from tests.dist.weights.tiny_models import find_model
from tests.seam.basic import make_vae
from tests.seam.batched_stable_diffusion import SIZE
from tests.seam.parts import build, fill_zeros, make_transformer, make_unet, none_of, normal, picture, text
from tests.seam.tiny import Case, TinyPipeline


def make_kandinsky_2() -> TinyPipeline:
    """Guidance between the embeddings of two pictures."""
    unet = make_unet(
        encoder_hid_dim=12, encoder_hid_dim_type="image_proj", addition_embed_type="image", out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", class_embed_type=None,
    )  # fmt: skip
    pipeline = build("KandinskyV22Pipeline", unet=unet, movq=make_movq(), scheduler=build("DDPMScheduler"))
    embeddings = {"image_embeds": normal(1, 12), "negative_image_embeds": normal(1, 12, seed=1)}
    return TinyPipeline(pipeline, {**embeddings, "guidance_scale": 4.0, "height": 64, "width": 64}, ("unet",))


def make_movq() -> Any:
    return build(
        "VQModel", block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, num_vq_embeddings=8, norm_type="spatial",
    ).eval()  # fmt: skip


def make_kandinsky_3() -> TinyPipeline:
    """A mild schedule: the usual one multiplies the rounding of this random UNet by 400 in its first step."""
    unet = build(
        "Kandinsky3UNet", block_out_channels=(8, 16, 32, 64), groups=4, time_embedding_dim=8, cross_attention_dim=16,
        encoder_hid_dim=24, attention_head_dim=4, layers_per_block=2, in_channels=4,
    )  # fmt: skip
    pipeline = build(
        "Kandinsky3Pipeline", unet=unet.eval(), movq=make_movq(), scheduler=build("DDPMScheduler", beta_end=0.002),
        **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    masks = {"attention_mask": normal(1, 7).bool().long(), "negative_attention_mask": normal(1, 7).bool().long()}
    return TinyPipeline(pipeline, {**text(24), **masks, "guidance_scale": 3.0, "height": 64, "width": 64}, ("unet",))


def make_clip() -> Any:
    """A text encoder that is asked for its dtype only."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**find_model("CLIPTextModel").config))


def make_cascade_prior() -> TinyPipeline:
    prior = build(
        "StableCascadeUNet", conditioning_dim=16, block_out_channels=(16, 16), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_image_in_channels=12,
        clip_text_in_channels=24, clip_text_pooled_in_channels=12, switch_level=(False,),
        down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1), in_channels=4, out_channels=4,
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
        timestep_ratio_embedding_dim=8,
    )  # fmt: skip
    pipeline = build(
        "StableCascadePriorPipeline", prior=fill_zeros(prior).eval(), scheduler=build("DDPMWuerstchenScheduler"),
        text_encoder=make_clip(), tokenizer=None,
    )  # fmt: skip
    pooled = {f"{p}prompt_embeds_pooled": normal(1, 1, 12, seed=i) for i, p in enumerate(("", "negative_"))}
    return TinyPipeline(
        pipeline, {**text(24), **pooled, "guidance_scale": 4.0, "height": 256, "width": 256}, ("prior",)
    )


def make_cascade_decoder() -> TinyPipeline:
    decoder = build(
        "StableCascadeUNet", conditioning_dim=16, block_out_channels=(16, 16), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_text_pooled_in_channels=12,
        down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1), in_channels=4, out_channels=4,
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
        timestep_ratio_embedding_dim=8, effnet_in_channels=4, patch_size=2, clip_seq=4,
    )  # fmt: skip
    pipeline = build(
        "StableCascadeDecoderPipeline", decoder=fill_zeros(decoder).eval(), scheduler=build("DDPMWuerstchenScheduler"),
        vqgan=None, latent_dim_scale=4.0, **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    pooled = {f"{p}prompt_embeds_pooled": normal(1, 1, 12, seed=i) for i, p in enumerate(("", "negative_"))}
    arguments = {"image_embeddings": normal(1, 4, 4, 4), "guidance_scale": 4.0}
    return TinyPipeline(pipeline, {**text(24), **pooled, **arguments}, ("decoder",))


def make_upscale() -> TinyPipeline:
    """The noise level of the small picture is a class label for each row."""
    unet = make_unet(in_channels=7, num_class_embeds=1000)
    pipeline = build(
        "StableDiffusionUpscalePipeline", vae=make_vae(), unet=unet, scheduler=build("DDIMScheduler"),
        low_res_scheduler=build("DDPMScheduler"), max_noise_level=350, **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**text(16), "image": picture(), "guidance_scale": 9.0}, ("unet",))


def deepfloyd(class_name: str, *, unet: Any, **arguments: Any) -> TinyPipeline:
    """Works on pixels: there is no autoencoder."""
    pipeline = build(
        class_name, unet=unet, scheduler=build("DDPMScheduler", variance_type="learned_range"),
        requires_safety_checker=False,
        **none_of("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "watermarker"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**text(16), "guidance_scale": 7.0, **arguments}, ("unet",))


def make_deepfloyd() -> TinyPipeline:
    return deepfloyd("IFPipeline", unet=make_unet(in_channels=3, out_channels=6), **SIZE)


def make_deepfloyd_image_to_image() -> TinyPipeline:
    unet = make_unet(in_channels=3, out_channels=6)
    return deepfloyd("IFImg2ImgPipeline", unet=unet, image=picture(), strength=0.9)


def make_stable_audio() -> TinyPipeline:
    """Sound: both branches share one table of rotary embeddings and one time step."""
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    vae = build(
        "AutoencoderOobleck", encoder_hidden_size=4, downsampling_ratios=[2, 2], decoder_channels=4,
        decoder_input_channels=4, audio_channels=2, channel_multiples=[1, 2], sampling_rate=4,
    )  # fmt: skip
    projection = StableAudioProjectionModel(text_encoder_dim=24, conditioning_dim=24, min_value=0, max_value=8)
    transformer = make_transformer(
        "StableAudioDiTModel", global_states_input_dim=48, cross_attention_input_dim=24, cross_attention_dim=24,
        in_channels=4,
    )  # fmt: skip
    pipeline = build(
        "StableAudioPipeline", transformer=transformer, vae=vae.eval(), projection_model=projection.eval(),
        scheduler=build("EDMDPMSolverMultistepScheduler"), **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    masks = {"attention_mask": normal(1, 7).bool().long(), "negative_attention_mask": normal(1, 7).bool().long()}
    return TinyPipeline(pipeline, {**text(24), **masks, "guidance_scale": 7.0, "audio_end_in_s": 8.0})


CASES = (
    Case("KandinskyV22Pipeline", "Kandinsky", "batched", make_kandinsky_2),
    Case("Kandinsky3Pipeline", "Kandinsky", "batched", make_kandinsky_3),
    Case("StableCascadePriorPipeline", "Stable Cascade", "batched", make_cascade_prior),
    Case("StableCascadeDecoderPipeline", "Stable Cascade", "batched", make_cascade_decoder),
    Case("StableDiffusionUpscalePipeline", "Stable Diffusion", "batched", make_upscale),
    Case("IFPipeline", "DeepFloyd IF", "batched", make_deepfloyd),
    Case("IFImg2ImgPipeline", "DeepFloyd IF", "batched", make_deepfloyd_image_to_image),
    Case("StableAudioPipeline", "Stable Audio", "batched", make_stable_audio),
)  # fmt: skip
