"""Pictures with one call a branch: Qwen-Image, Flux true CFG from a picture, CogView4, Lumina 2, JoyImage."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    Flux2KleinPipeline,
    FluxImg2ImgPipeline,
    FluxTransformer2DModel,
    JoyImageEditPipeline,
    Lumina2Pipeline,
    OvisImagePipeline,
    QwenImage21Pipeline,
    QwenImageEditPipeline,
    QwenImagePipeline,
)
from transformers import PreTrainedTokenizerFast

from tests.dist.weights.tiny_models import values
from tests.seam.basic import make_vae
from tests.seam.branch_parts import (
    both_masks,
    both_prompts,
    make_deep_wan_vae,
    make_flow_scheduler,
    make_flux2_vae,
    make_picture,
    make_transformer,
)
from tests.seam.tiny import Case, TinyPipeline
from tests.tiny_checkpoints import make_word_tokenizer

SIZE = {"height": 32, "width": 32}


def make_qwen_image(**changes: Any) -> TinyPipeline:
    """Prompts of two lengths: each has a signature of its own."""
    pipeline = QwenImagePipeline(
        scheduler=make_flow_scheduler(), vae=None, text_encoder=None, tokenizer=None,
        transformer=make_transformer("QwenImageTransformer2DModel"),
    )  # fmt: skip
    prompts = {**both_prompts(negative_length=4), **both_masks("prompt_embeds_mask", negative_length=4)}
    return TinyPipeline(pipeline, {**prompts, **SIZE, "true_cfg_scale": 4.0, **changes})


def make_qwen_image_unguided() -> TinyPipeline:
    return make_qwen_image(true_cfg_scale=1.0)


def make_qwen_image_edit() -> TinyPipeline:
    """The pipeline scales its picture to 1024 x 1024, so this autoencoder shrinks by 64."""
    torch.manual_seed(1)
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1] * 7, num_res_blocks=1, temperal_downsample=[False] * 6,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    pipeline = QwenImageEditPipeline(
        scheduler=make_flow_scheduler(), vae=vae, text_encoder=None, tokenizer=None, processor=None,
        transformer=make_transformer("QwenImageTransformer2DModel"),
    )  # fmt: skip
    prompts = {**both_prompts(), **both_masks("prompt_embeds_mask")}
    arguments = {**prompts, "height": 256, "width": 256, "true_cfg_scale": 4.0, "image": make_picture()}
    return TinyPipeline(pipeline, arguments)


class ChatProcessor(PreTrainedTokenizerFast):
    """A tokenizer in the place of a vision processor: the pipeline asks it for the length of its system prompt."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self

    def apply_chat_template(self, conversation: Any, **_: Any) -> list[list[int]]:
        return [self.encode(conversation[0]["content"][0]["text"])]


def make_chat_processor() -> ChatProcessor:
    return ChatProcessor(tokenizer_object=make_word_tokenizer().backend_tokenizer, unk_token="<unk>")


def make_qwen_image_21(**changes: Any) -> TinyPipeline:
    pipeline = QwenImage21Pipeline(
        scheduler=make_flow_scheduler(), vae=None, text_encoder=None, processor=make_chat_processor(),
        transformer=make_transformer("QwenImage21Transformer2DModel"),
    )  # fmt: skip
    prompts = {**both_prompts(), **both_masks("prompt_embeds_mask")}
    return TinyPipeline(pipeline, {**prompts, **SIZE, "true_cfg_scale": 4.0, "use_kv_cache": False, **changes})


def make_qwen_image_21_cached() -> TinyPipeline:
    """Each branch keeps keys and values in an object that lives on the leader."""
    tiny = make_qwen_image_21(use_kv_cache=True)
    tiny.pipeline.transformer.register_to_config(causal_condition=True)
    return tiny


def make_flux_image_to_image() -> TinyPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    pipeline = FluxImg2ImgPipeline(
        transformer=transformer.eval(), scheduler=make_flow_scheduler(), vae=make_vae().eval(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pooled = {"pooled_prompt_embeds": values(1, 12), "negative_pooled_prompt_embeds": -values(1, 12)}
    arguments = {**both_prompts(), **pooled, **SIZE, "true_cfg_scale": 4.0, "guidance_scale": 3.5, "strength": 0.8}
    return TinyPipeline(pipeline, {**arguments, "image": make_picture(32, 32)})


def make_flux2_klein() -> TinyPipeline:
    pipeline = Flux2KleinPipeline(
        scheduler=make_flow_scheduler(), vae=make_flux2_vae(), text_encoder=None, tokenizer=None,
        transformer=make_transformer("Flux2Transformer2DModel", guidance_embeds=False),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 4.0})


def make_ovis_image() -> TinyPipeline:
    pipeline = OvisImagePipeline(
        scheduler=make_flow_scheduler(), vae=None, text_encoder=None, tokenizer=None,
        transformer=make_transformer("OvisImageTransformer2DModel"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 4.0, "negative_prompt": None})


def make_cogview4() -> TinyPipeline:
    pipeline = CogView4Pipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=make_flow_scheduler(),
        transformer=make_transformer("CogView4Transformer2DModel"),
    )  # fmt: skip
    prompts = both_prompts(length=16, negative_length=16)
    return TinyPipeline(pipeline, {**prompts, **SIZE, "guidance_scale": 4.0})


def make_lumina2(**changes: Any) -> TinyPipeline:
    pipeline = Lumina2Pipeline(
        transformer=make_transformer("Lumina2Transformer2DModel"), scheduler=make_flow_scheduler(), vae=None,
        text_encoder=None, tokenizer=None,
    )  # fmt: skip
    prompts = {**both_prompts(), **both_masks("prompt_attention_mask")}
    return TinyPipeline(pipeline, {**prompts, **SIZE, "guidance_scale": 4.0, **changes})


def make_lumina2_stopping() -> TinyPipeline:
    """Guidance in the first half of the steps only."""
    return make_lumina2(cfg_trunc_ratio=0.5)


def make_joy_image(**changes: Any) -> TinyPipeline:
    pipeline = JoyImageEditPipeline(
        scheduler=make_flow_scheduler(), vae=make_deep_wan_vae(), text_encoder=None, tokenizer=None, processor=None,
        transformer=make_transformer("JoyImageEditTransformer3DModel"),
    )  # fmt: skip
    prompts = {**both_prompts(), **both_masks("prompt_embeds_mask")}
    return TinyPipeline(pipeline, {**prompts, **SIZE, "guidance_scale": 4.0, **changes})


def make_joy_image_edit() -> TinyPipeline:
    """The picture's latents are written into the latents before each step."""
    return make_joy_image(image=make_picture(32, 32))


CASES = (
    Case("QwenImagePipeline", "Qwen-Image", "branch", make_qwen_image),
    Case("QwenImagePipeline without guidance", "Qwen-Image", "branch", make_qwen_image_unguided),
    Case("QwenImageEditPipeline", "Qwen-Image", "branch", make_qwen_image_edit),
    Case("QwenImage21Pipeline", "Qwen-Image 2.1", "branch", make_qwen_image_21),
    Case(
        "QwenImage21Pipeline with its KV cache", "Qwen-Image 2.1", "branch", make_qwen_image_21_cached,
        reason_not_halved="keys and values are kept in an object on the leader (`use_kv_cache=False` halves)",
    ),
    Case("FluxImg2ImgPipeline true CFG", "Flux", "branch", make_flux_image_to_image),
    Case("Flux2KleinPipeline", "Flux 2", "branch", make_flux2_klein),
    Case("OvisImagePipeline", "Ovis-Image", "branch", make_ovis_image),
    Case("CogView4Pipeline", "CogView4", "branch", make_cogview4),
    Case("Lumina2Pipeline", "Lumina 2", "branch", make_lumina2),
    Case(
        "Lumina2Pipeline with guidance that stops", "Lumina 2", "branch", make_lumina2_stopping, is_representative=True,
    ),
    Case("JoyImageEditPipeline", "JoyImage", "branch", make_joy_image, is_representative=True),
    Case("JoyImageEditPipeline with a picture", "JoyImage", "branch", make_joy_image_edit),
)  # fmt: skip
