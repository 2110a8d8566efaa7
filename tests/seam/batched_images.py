"""Transformers for pictures that get all branches in one call a step."""

from typing import Any

import torch

from tests.seam.basic import make_vae
from tests.seam.parts import (
    build,
    make_transformer,
    mask,
    none_of,
    normal,
    picture,
    text,
    text_masks,
)
from tests.seam.tiny import Case, TinyPipeline

SIZE = {"height": 16, "width": 16}
FLOW = "FlowMatchEulerDiscreteScheduler"


def stable_diffusion_3(
    class_name: str, *, num_layers: int = 2, channels: int = 4, parts: dict[str, Any] | None = None, **arguments: Any
) -> TinyPipeline:
    """A pipeline with the components of Stable Diffusion 3; `parts` adds to them."""
    transformer = make_transformer(
        "SD3Transformer2DModel", num_layers=num_layers, patch_size=1, pos_embed_max_size=16, in_channels=channels,
        out_channels=channels,
    )  # fmt: skip
    pipeline = build(
        class_name, transformer=transformer, scheduler=build(FLOW), vae=make_vae(channels),
        **none_of("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
        **(parts or {}),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**text(24, pooled=12), "guidance_scale": 5.0, **arguments})


def make_sd3_image_to_image() -> TinyPipeline:
    return stable_diffusion_3("StableDiffusion3Img2ImgPipeline", image=picture(), strength=0.8, **SIZE)


def make_sd3_inpainting() -> TinyPipeline:
    return stable_diffusion_3(
        "StableDiffusion3InpaintPipeline", channels=16, image=picture(), mask_image=mask(), strength=0.8, **SIZE
    )


def make_sd3_skip_layers() -> TinyPipeline:
    """In the middle steps a second call of one row, without some of the layers."""
    return stable_diffusion_3(
        "StableDiffusion3Pipeline", num_layers=3, skip_guidance_layers=[1], skip_layer_guidance_start=0.2,
        skip_layer_guidance_stop=0.9, num_inference_steps=6, **SIZE,
    )  # fmt: skip


def make_pixart_alpha() -> TinyPipeline:
    return _pixart("PixArtAlphaPipeline", "DPMSolverMultistepScheduler")


def make_pixart_sigma() -> TinyPipeline:
    return _pixart("PixArtSigmaPipeline", "EulerDiscreteScheduler")


def _pixart(class_name: str, scheduler: str) -> TinyPipeline:
    pipeline = build(
        class_name, transformer=make_transformer("PixArtTransformer2DModel"), scheduler=build(scheduler),
        vae=make_vae(), **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    arguments = {
        **text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 4.5, "use_resolution_binning": False,
        **SIZE,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_sana() -> TinyPipeline:
    pipeline = build(
        "SanaPipeline", transformer=make_transformer("SanaTransformer2DModel", guidance_embeds=False),
        scheduler=build("DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True),
        **none_of("text_encoder", "tokenizer", "vae"),
    )  # fmt: skip
    arguments = {
        **text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 4.5, "use_resolution_binning": False,
        "height": 256, "width": 256,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_joy_edit() -> TinyPipeline:
    """A picture to edit; the model gets a list of shapes for each row."""
    vae = build(
        "AutoencoderKLWan", base_dim=4, z_dim=4, dim_mult=[1] * 3, num_res_blocks=1, temperal_downsample=[False] * 2,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, scale_factor_spatial=4, scale_factor_temporal=1,
    )  # fmt: skip
    pipeline = build(
        "JoyImageEditPlusPipeline", transformer=make_transformer("JoyImageEditPlusTransformer3DModel"),
        scheduler=build(FLOW), vae=vae.eval(), **none_of("text_encoder", "tokenizer", "processor"),
    )  # fmt: skip

    def encode(*, prompt: list[str], **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of the text encoder: the pipeline refuses embeddings beside a prompt, and fails without one."""
        length = 5 if "blurred" in prompt[0] else 7
        return normal(1, length, 24, seed=length), torch.ones(1, length)

    pipeline.encode_prompt_multiple_images = encode
    pipeline.image_processor.get_default_height_width = lambda *_: (32, 32)  # its own sizes have a million pixels
    arguments = {
        "prompt": "edit", "negative_prompt": "blurred", "images": [[picture()]], "height": 32, "width": 32,
        "guidance_scale": 4.0,
    }  # fmt: skip
    return TinyPipeline(pipeline, arguments)


def make_hidream() -> TinyPipeline:
    """Hidden states of several layers, stacked: the batch is their dimension 1."""
    pipeline = build(
        "HiDreamImagePipeline", transformer=make_transformer("HiDreamImageTransformer2DModel"), scheduler=build(FLOW),
        vae=make_vae(), **none_of(*(f"{n}{i}" for n in ("text_encoder", "tokenizer") for i in ("", "_2", "_3", "_4"))),
    )  # fmt: skip
    pipeline.default_sample_size = 8  # it scales every size to the area of its default
    arguments: dict[str, Any] = {"guidance_scale": 5.0, **SIZE}
    for seed, prefix in enumerate(("", "negative_")):
        arguments[f"{prefix}prompt_embeds_t5"] = normal(1, 7, 24, seed=seed)
        arguments[f"{prefix}prompt_embeds_llama3"] = normal(3, 1, 7, 24, seed=seed)
        arguments[f"{prefix}pooled_prompt_embeds"] = normal(1, 12, seed=seed)
    return TinyPipeline(pipeline, arguments)


def z_image(class_name: str, *, parts: dict[str, Any] | None = None, **arguments: Any) -> TinyPipeline:
    """Its arguments are lists with a tensor a picture, of the prompts' own lengths."""
    pipeline = build(
        class_name, transformer=make_transformer("ZImageTransformer2DModel", axes_lens=[128, 32, 32]), vae=make_vae(),
        scheduler=build(FLOW), **none_of("text_encoder", "tokenizer"), **(parts or {}),
    )  # fmt: skip
    embeddings = {"prompt_embeds": [normal(7, 24)], "negative_prompt_embeds": [normal(5, 24, seed=1)]}
    return TinyPipeline(pipeline, {**embeddings, "guidance_scale": 4.0, **SIZE, **arguments})


def make_z_image() -> TinyPipeline:
    return z_image("ZImagePipeline")


def make_z_image_truncated() -> TinyPipeline:
    """Guidance ends after half of the schedule: the last steps have one branch."""
    return z_image("ZImagePipeline", cfg_truncation=0.5, cfg_normalization=True, num_inference_steps=6)


def make_z_image_to_image() -> TinyPipeline:
    return z_image("ZImageImg2ImgPipeline", image=picture(), strength=0.8)


def make_z_image_inpainting() -> TinyPipeline:
    return z_image("ZImageInpaintPipeline", image=picture(), mask_image=mask(), strength=0.8)


def make_aura_flow() -> TinyPipeline:
    pipeline = build(
        "AuraFlowPipeline", transformer=make_transformer("AuraFlowTransformer2DModel"), scheduler=build(FLOW),
        vae=make_vae(), **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**text(24), **text_masks(), "guidance_scale": 30.0, **SIZE})


def make_hunyuan_dit(class_name: str = "HunyuanDiTPipeline", **parts: Any) -> TinyPipeline:
    transformer = make_transformer("HunyuanDiT2DModel", learn_sigma=True, cross_attention_dim=16)
    pipeline = build(
        class_name, transformer=transformer, scheduler=build("DDPMScheduler"), vae=make_vae(),
        requires_safety_checker=False,
        **none_of("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor"),
        **parts,
    )  # fmt: skip
    arguments: dict[str, Any] = {"guidance_scale": 5.0, "use_resolution_binning": False, **SIZE}
    for seed, prefix in enumerate(("", "negative_")):
        arguments[f"{prefix}prompt_embeds"] = normal(1, 4, 16, seed=seed)
        arguments[f"{prefix}prompt_embeds_2"] = normal(1, 7, 24, seed=seed)
        arguments[f"{prefix}prompt_attention_mask"] = torch.ones(1, 4)
        arguments[f"{prefix}prompt_attention_mask_2"] = torch.ones(1, 7)
    return TinyPipeline(pipeline, arguments)


def make_lumina() -> TinyPipeline:
    pipeline = build(
        "LuminaPipeline", transformer=make_transformer("LuminaNextDiT2DModel"), scheduler=build(FLOW), vae=make_vae(),
        **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    masks = text_masks(dtype=torch.bool)
    return TinyPipeline(pipeline, {**text(24), **masks, "guidance_scale": 4.0, "height": 64, "width": 64})


def make_cogview3() -> TinyPipeline:
    pipeline = build(
        "CogView3PlusPipeline", transformer=make_transformer("CogView3PlusTransformer2DModel"),
        scheduler=build("CogVideoXDDIMScheduler"), vae=make_vae(), **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    arguments = {**text(24), "original_size": (16, 16), "target_size": (16, 16), "guidance_scale": 5.0, **SIZE}
    del arguments["target_size"]
    return TinyPipeline(pipeline, arguments)


def make_prx() -> TinyPipeline:
    pipeline = build(
        "PRXPipeline", transformer=make_transformer("PRXTransformer2DModel"), scheduler=build(FLOW), vae=make_vae(),
        **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    arguments = {**text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 4.0, **SIZE}
    return TinyPipeline(pipeline, {**arguments, "use_resolution_binning": False})


def make_bria() -> TinyPipeline:
    pipeline = build(
        "BriaPipeline", transformer=make_transformer("BriaTransformer2DModel", in_channels=16), scheduler=build(FLOW),
        vae=make_vae(), **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**text(24), "guidance_scale": 5.0, **SIZE})


def make_dit() -> TinyPipeline:
    """Guidance by class labels: the empty class is the second branch."""
    transformer = make_transformer("DiTTransformer2DModel", num_embeds_ada_norm=1000, out_channels=8)
    pipeline = build("DiTPipeline", transformer=transformer, vae=make_vae(), scheduler=build("DDIMScheduler"))
    return TinyPipeline(pipeline, {"class_labels": [3], "guidance_scale": 4.0})


def make_ernie_image() -> TinyPipeline:
    """Prompts of their own lengths, padded to the longest of the batch."""
    pipeline = build(
        "ErnieImagePipeline", transformer=make_transformer("ErnieImageTransformer2DModel"), scheduler=build(FLOW),
        **none_of("text_encoder", "tokenizer", "vae", "pe", "pe_tokenizer"),
    )  # fmt: skip
    embeddings = {"prompt_embeds": [normal(7, 24)], "negative_prompt_embeds": [normal(5, 24, seed=1)]}
    return TinyPipeline(pipeline, {**embeddings, "guidance_scale": 4.0, "height": 64, "width": 64, "use_pe": False})


CASES = (
    Case("StableDiffusion3Img2ImgPipeline", "Stable Diffusion 3", "batched", make_sd3_image_to_image),
    Case("StableDiffusion3InpaintPipeline", "Stable Diffusion 3", "batched", make_sd3_inpainting),
    Case(
        "StableDiffusion3Pipeline skip layers", "Stable Diffusion 3", "mixed", make_sd3_skip_layers,
        is_representative=True,
    ),
    Case("PixArtAlphaPipeline", "PixArt", "batched", make_pixart_alpha),
    Case("PixArtSigmaPipeline", "PixArt", "batched", make_pixart_sigma),
    Case("SanaPipeline", "Sana", "batched", make_sana),
    Case("JoyImageEditPlusPipeline", "JoyImage", "batched", make_joy_edit),
    Case("HiDreamImagePipeline", "HiDream", "batched", make_hidream, is_representative=True),
    Case("ZImagePipeline", "Z-Image", "batched", make_z_image, is_representative=True),
    Case("ZImagePipeline truncated", "Z-Image", "batched", make_z_image_truncated),
    Case("ZImageImg2ImgPipeline", "Z-Image", "batched", make_z_image_to_image),
    Case("ZImageInpaintPipeline", "Z-Image", "batched", make_z_image_inpainting),
    Case("AuraFlowPipeline", "AuraFlow", "batched", make_aura_flow),
    Case("HunyuanDiTPipeline", "HunyuanDiT", "batched", make_hunyuan_dit),
    Case("LuminaPipeline", "Lumina", "batched", make_lumina),
    Case("CogView3PlusPipeline", "CogView3", "batched", make_cogview3),
    Case("PRXPipeline", "PRX", "batched", make_prx),
    Case("BriaPipeline", "Bria", "batched", make_bria),
    Case("DiTPipeline", "DiT", "batched", make_dit),
    Case("ErnieImagePipeline", "ERNIE-Image", "batched", make_ernie_image),
)  # fmt: skip
