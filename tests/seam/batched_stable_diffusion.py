"""Stable Diffusion and Stable Diffusion XL: one call of the UNet a step, with all branches in its batch."""

from typing import Any

from tests.seam.basic import make_vae
from tests.seam.parts import build, make_unet, mask, none_of, normal, picture, text
from tests.seam.tiny import Case, TinyPipeline

SIZE = {"height": 16, "width": 16}
XL_UNET = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40,
    "transformer_layers_per_block": (1, 1),
}  # fmt: skip
XL_TEXT = {**text(16, pooled=16), "guidance_scale": 5.0}


def stable_diffusion(
    class_name: str, *, unet: dict[str, Any] | None = None, parts: dict[str, Any] | None = None, **arguments: Any
) -> TinyPipeline:
    """A pipeline with the components of Stable Diffusion; `parts` adds to them."""
    components = {
        "vae": make_vae(), "unet": make_unet(**(unet or {})), "scheduler": build("DDIMScheduler"),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
        **none_of("text_encoder", "tokenizer"), **(parts or {}),
    }  # fmt: skip
    return TinyPipeline(build(class_name, **components), {**text(16), "guidance_scale": 5.0, **arguments}, ("unet",))


def stable_diffusion_xl(
    class_name: str, *, unet: dict[str, Any] | None = None, parts: dict[str, Any] | None = None, **arguments: Any
) -> TinyPipeline:
    """A pipeline with the components of Stable Diffusion XL; `parts` adds to them."""
    components = {
        "vae": make_vae(), "unet": make_unet(**XL_UNET, **(unet or {})), "scheduler": build("EulerDiscreteScheduler"),
        "add_watermarker": False, **none_of("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        **(parts or {}),
    }  # fmt: skip
    return TinyPipeline(build(class_name, **components), {**XL_TEXT, **arguments}, ("unet",))


def make_image_to_image() -> TinyPipeline:
    return stable_diffusion("StableDiffusionImg2ImgPipeline", image=picture(), strength=0.8)


def make_inpainting() -> TinyPipeline:
    return stable_diffusion("StableDiffusionInpaintPipeline", image=picture(), mask_image=mask(), **SIZE)


def make_inpainting_9_channels() -> TinyPipeline:
    return stable_diffusion(
        "StableDiffusionInpaintPipeline", unet={"in_channels": 9}, image=picture(), mask_image=mask(), **SIZE
    )


def make_instruct_pix2pix() -> TinyPipeline:
    """Three branches: with text and picture, with the picture, without both."""
    return stable_diffusion(
        "StableDiffusionInstructPix2PixPipeline", unet={"in_channels": 8}, image=picture(), image_guidance_scale=1.5
    )


def make_two_pictures() -> TinyPipeline:
    """A batch of four: two branches of two pictures."""
    return stable_diffusion("StableDiffusionPipeline", num_images_per_prompt=2, **SIZE)


def make_stochastic() -> TinyPipeline:
    """DDIM with noise at each step."""
    return stable_diffusion("StableDiffusionPipeline", eta=1.0, **SIZE)


def make_second_order() -> TinyPipeline:
    """Heun: two calls and two scheduler steps for each time step."""
    return stable_diffusion("StableDiffusionPipeline", parts={"scheduler": build("HeunDiscreteScheduler")}, **SIZE)


def make_depth_to_image() -> TinyPipeline:
    components = {
        "vae": make_vae(), "unet": make_unet(in_channels=5), "scheduler": build("DDIMScheduler"),
        **none_of("text_encoder", "tokenizer", "depth_estimator", "feature_extractor"),
    }  # fmt: skip
    arguments = {"image": picture(), "depth_map": normal(1, 16, 16), "strength": 0.8, "guidance_scale": 5.0, **text(16)}
    return TinyPipeline(build("StableDiffusionDepth2ImgPipeline", **components), arguments, ("unet",))


def make_perturbed_attention() -> TinyPipeline:
    return stable_diffusion("StableDiffusionPAGPipeline", parts={"pag_applied_layers": "mid"}, pag_scale=3.0, **SIZE)


def make_adapter() -> TinyPipeline:
    """A T2I adapter: its features are arguments of the UNet, the same for each step."""
    adapter = build("T2IAdapter", channels=(8, 16), num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return stable_diffusion(
        "StableDiffusionAdapterPipeline", unet=blocks, parts={"adapter": adapter.eval()}, image=picture(), **SIZE
    )


def make_xl() -> TinyPipeline:
    return stable_diffusion_xl("StableDiffusionXLPipeline", guidance_rescale=0.7, **SIZE)


def make_xl_image_to_image() -> TinyPipeline:
    return stable_diffusion_xl("StableDiffusionXLImg2ImgPipeline", image=picture(), strength=0.8)


def make_xl_inpainting() -> TinyPipeline:
    return stable_diffusion_xl("StableDiffusionXLInpaintPipeline", image=picture(), mask_image=mask(), **SIZE)


def make_xl_instruct_pix2pix() -> TinyPipeline:
    return stable_diffusion_xl(
        "StableDiffusionXLInstructPix2PixPipeline", unet={"in_channels": 8}, image=picture(), image_guidance_scale=1.5,
        **SIZE,
    )  # fmt: skip


def make_kolors() -> TinyPipeline:
    pipeline = build(
        "KolorsPipeline", vae=make_vae(), unet=make_unet(**XL_UNET), scheduler=build("EulerDiscreteScheduler"),
        **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**XL_TEXT, **SIZE}, ("unet",))


CASES = (
    Case("StableDiffusionPipeline two pictures", "Stable Diffusion", "batched", make_two_pictures),
    Case("StableDiffusionPipeline DDIM eta 1", "Stable Diffusion", "batched", make_stochastic),
    Case("StableDiffusionPipeline Heun", "Stable Diffusion", "batched", make_second_order),
    Case("StableDiffusionImg2ImgPipeline", "Stable Diffusion", "batched", make_image_to_image),
    Case("StableDiffusionInpaintPipeline", "Stable Diffusion", "batched", make_inpainting),
    Case("StableDiffusionInpaintPipeline 9 channels", "Stable Diffusion", "batched", make_inpainting_9_channels),
    Case(
        "StableDiffusionInstructPix2PixPipeline", "Stable Diffusion", "batched", make_instruct_pix2pix,
    ),
    Case("StableDiffusionDepth2ImgPipeline", "Stable Diffusion", "batched", make_depth_to_image),
    Case("StableDiffusionAdapterPipeline", "Stable Diffusion", "batched", make_adapter),
    Case(
        "StableDiffusionPAGPipeline", "perturbed attention", "batched", make_perturbed_attention,
        reason_not_halved="its attention processors take the batch apart themselves",
    ),
    Case("StableDiffusionXLPipeline", "Stable Diffusion XL", "batched", make_xl),
    Case("StableDiffusionXLImg2ImgPipeline", "Stable Diffusion XL", "batched", make_xl_image_to_image),
    Case("StableDiffusionXLInpaintPipeline", "Stable Diffusion XL", "batched", make_xl_inpainting),
    Case(
        "StableDiffusionXLInstructPix2PixPipeline", "Stable Diffusion XL", "batched", make_xl_instruct_pix2pix,
    ),
    Case("KolorsPipeline", "Kolors", "batched", make_kolors),
)  # fmt: skip
