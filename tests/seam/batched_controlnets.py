"""ControlNets: a second model that is called in each step and whose results are arguments of the denoiser's call."""

from typing import Any

from tests.dist.weights.tiny_models import find_model
from tests.seam.basic import make_flux_true_cfg, make_vae
from tests.seam.batched_images import make_hunyuan_dit, stable_diffusion_3, z_image
from tests.seam.batched_stable_diffusion import SIZE, XL_UNET, stable_diffusion, stable_diffusion_xl
from tests.seam.batched_videos import make_motion_unet
from tests.seam.parts import build, fill_zeros, make_transformer, mask, none_of, picture, text, text_masks
from tests.seam.tiny import Case, TinyPipeline

UNET = ("unet", "controlnet")
TRANSFORMER = ("transformer", "controlnet")
CONTROL_BLOCKS = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
    "conditioning_embedding_out_channels": (4, 8),
}  # fmt: skip


def make_controlnet(class_name: str = "ControlNetModel", **changes: Any) -> Any:
    """Its last layers start at zero in a new ControlNet; here they do something."""
    return fill_zeros(build(class_name, **{**CONTROL_BLOCKS, **changes})).eval()


def stable_diffusion_control(class_name: str, **arguments: Any) -> TinyPipeline:
    tiny = stable_diffusion(class_name, parts={"controlnet": make_controlnet()}, **arguments)
    return TinyPipeline(tiny.pipeline, tiny.arguments, UNET)


def make_control() -> TinyPipeline:
    return stable_diffusion_control("StableDiffusionControlNetPipeline", image=picture(), **SIZE)


def make_guess_mode() -> TinyPipeline:
    """The ControlNet sees one branch of the two: a call of one row."""
    return stable_diffusion_control("StableDiffusionControlNetPipeline", image=picture(), guess_mode=True, **SIZE)


def make_two_controlnets() -> TinyPipeline:
    """Two ControlNets in one component."""
    tiny = stable_diffusion(
        "StableDiffusionControlNetPipeline", parts={"controlnet": [make_controlnet(), make_controlnet()]},
        image=[picture(), picture(seed=1)], controlnet_conditioning_scale=[1.0, 0.5], **SIZE,
    )  # fmt: skip
    return TinyPipeline(tiny.pipeline, tiny.arguments, UNET)


def make_control_image_to_image() -> TinyPipeline:
    return stable_diffusion_control(
        "StableDiffusionControlNetImg2ImgPipeline", image=picture(), control_image=picture(seed=1), strength=0.8
    )


def make_control_inpainting() -> TinyPipeline:
    return stable_diffusion_control(
        "StableDiffusionControlNetInpaintPipeline", image=picture(), control_image=picture(seed=1), mask_image=mask(),
        **SIZE,
    )  # fmt: skip


def make_xl_control() -> TinyPipeline:
    tiny = stable_diffusion_xl(
        "StableDiffusionXLControlNetPipeline", parts={"controlnet": make_controlnet(**XL_UNET)}, image=picture(), **SIZE
    )
    return TinyPipeline(tiny.pipeline, tiny.arguments, UNET)


def make_xl_control_union() -> TinyPipeline:
    union = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    tiny = stable_diffusion_xl(
        "StableDiffusionXLControlNetUnionPipeline",
        parts={"controlnet": make_controlnet("ControlNetUnionModel", **XL_UNET, **union)},
        control_image=[picture()], control_mode=[1], **SIZE,
    )  # fmt: skip
    return TinyPipeline(tiny.pipeline, tiny.arguments, UNET)


def make_sd3_control() -> TinyPipeline:
    """Its ControlNet returns a list of tensors, one a block."""
    config = {"patch_size": 1, "pos_embed_max_size": 16, "in_channels": 4, "out_channels": 4, "sample_size": 8}
    controlnet = build(
        "SD3ControlNetModel", num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
        caption_projection_dim=32, pooled_projection_dim=12, **config,
    )  # fmt: skip
    tiny = stable_diffusion_3(
        "StableDiffusion3ControlNetPipeline", parts={"controlnet": fill_zeros(controlnet).eval()},
        control_image=picture(), controlnet_conditioning_scale=0.7, **SIZE,
    )  # fmt: skip
    return TinyPipeline(tiny.pipeline, tiny.arguments, TRANSFORMER)


def make_dc_vae() -> Any:
    return build(
        "AutoencoderDC", latent_channels=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    ).eval()  # fmt: skip


def make_sana_control() -> TinyPipeline:
    config = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
        "caption_channels": 24, "sample_size": 8,
    }  # fmt: skip
    pipeline = build(
        "SanaControlNetPipeline", transformer=make_transformer("SanaTransformer2DModel", guidance_embeds=False),
        controlnet=fill_zeros(build("SanaControlNetModel", **config)).eval(), vae=make_dc_vae(),
        scheduler=build("DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True),
        **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    arguments = {**text(24), **text_masks(), "negative_prompt": None, "guidance_scale": 4.5}
    arguments |= {"height": 32, "width": 32, "control_image": picture(32), "use_resolution_binning": False}
    return TinyPipeline(pipeline, arguments, TRANSFORMER)


def make_animatediff_control() -> TinyPipeline:
    """The ControlNet's batch is the frames of both branches."""
    pipeline = build(
        "AnimateDiffControlNetPipeline", vae=make_vae(), unet=make_motion_unet(), motion_adapter=None,
        controlnet=make_controlnet(), scheduler=build("DDIMScheduler"), **none_of("text_encoder", "tokenizer"),
    )  # fmt: skip
    frames = [picture(seed=index) for index in range(3)]
    arguments = {**text(16), "guidance_scale": 7.5, "num_frames": 3, "conditioning_frames": frames, **SIZE}
    return TinyPipeline(pipeline, arguments, UNET)


def make_z_image_control() -> TinyPipeline:
    """The ControlNet shares modules with the transformer and returns a tensor for each of its layers."""
    config = {
        "control_layers_places": [0], "control_refiner_layers_places": [], "control_in_dim": 4, "dim": 32,
        "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    }  # fmt: skip
    controlnet = fill_zeros(build("ZImageControlNetModel", **config)).eval()
    tiny = z_image("ZImageControlNetPipeline", parts={"controlnet": controlnet}, control_image=picture())
    return TinyPipeline(tiny.pipeline, tiny.arguments, TRANSFORMER)


def make_flux_control() -> TinyPipeline:
    """True guidance: one call of the ControlNet serves both branches' calls of the transformer."""
    tiny = make_flux_true_cfg()
    controlnet = build(
        "FluxControlNetModel", in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    parts = {**tiny.pipeline.components, "controlnet": fill_zeros(controlnet).eval()}
    pipeline = build("FluxControlNetPipeline", **parts)
    return TinyPipeline(pipeline, {**tiny.arguments, "control_image": picture()}, TRANSFORMER)


def make_hunyuan_dit_control() -> TinyPipeline:
    config = find_model("HunyuanDiT2DModel").config
    names = (
        "num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size", "hidden_size",
        "cross_attention_dim", "cross_attention_dim_t5", "pooled_projection_dim", "text_len", "text_len_t5",
    )  # fmt: skip
    controlnet = build(
        "HunyuanDiT2DControlNetModel", transformer_num_layers=4, **{name: config[name] for name in names}
    )
    tiny = make_hunyuan_dit("HunyuanDiTControlNetPipeline", controlnet=fill_zeros(controlnet).eval())
    return TinyPipeline(tiny.pipeline, {**tiny.arguments, "control_image": picture()}, TRANSFORMER)


CASES = (
    Case("StableDiffusionControlNetPipeline", "ControlNet", "batched", make_control, is_representative=True),
    Case("StableDiffusionControlNetPipeline guess mode", "ControlNet", "batched", make_guess_mode),
    Case("StableDiffusionControlNetPipeline two", "ControlNet", "batched", make_two_controlnets),
    Case("StableDiffusionControlNetImg2ImgPipeline", "ControlNet", "batched", make_control_image_to_image),
    Case("StableDiffusionControlNetInpaintPipeline", "ControlNet", "batched", make_control_inpainting),
    Case("StableDiffusionXLControlNetPipeline", "ControlNet", "batched", make_xl_control),
    Case("StableDiffusionXLControlNetUnionPipeline", "ControlNet", "batched", make_xl_control_union),
    Case("StableDiffusion3ControlNetPipeline", "ControlNet", "batched", make_sd3_control),
    Case("SanaControlNetPipeline", "ControlNet", "batched", make_sana_control),
    Case("ZImageControlNetPipeline", "ControlNet", "batched", make_z_image_control),
    Case("FluxControlNetPipeline true CFG", "ControlNet", "branch", make_flux_control),
    Case("HunyuanDiTControlNetPipeline", "ControlNet", "batched", make_hunyuan_dit_control),
    Case("AnimateDiffControlNetPipeline", "ControlNet", "batched", make_animatediff_control, is_representative=True),
)  # fmt: skip
