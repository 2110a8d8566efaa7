"""Videos and worlds with one call a branch: HunyuanVideo, Kandinsky 5 and 6, Cosmos."""

from typing import Any

import torch
from diffusers import (
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTextToWorldPipeline,
    EDMEulerScheduler,
    HunyuanVideoPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky6TI2VAPipeline,
    UniPCMultistepScheduler,
)

from tests.dist.weights.tiny_models import ones, values
from tests.seam.branch_parts import (
    both_prompts,
    make_flow_scheduler,
    make_picture,
    make_transformer,
    make_wan_vae,
)
from tests.seam.tiny import Case, TinyPipeline

SIZE = {"height": 32, "width": 32, "num_frames": 5}


def make_hunyuan_video(**changes: Any) -> TinyPipeline:
    """True CFG beside the guidance that is built into the model."""
    pipeline = HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, transformer=make_transformer("HunyuanVideoTransformer3DModel"), vae=None,
        scheduler=make_flow_scheduler(), text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    masks = {"prompt_attention_mask": ones(1, 7), "negative_prompt_attention_mask": ones(1, 7)}
    pooled = {"pooled_prompt_embeds": values(1, 12), "negative_pooled_prompt_embeds": -values(1, 12)}
    arguments = {**both_prompts(), **masks, **pooled, **SIZE, "true_cfg_scale": 4.0, **changes}
    return TinyPipeline(pipeline, {**arguments, "negative_prompt": ""})


def make_hunyuan_video_embedded() -> TinyPipeline:
    return make_hunyuan_video(true_cfg_scale=1.0)


def make_kandinsky5_video() -> TinyPipeline:
    """Its latents are written in place after each step."""
    pipeline = Kandinsky5T2VPipeline(
        transformer=make_transformer("Kandinsky5Transformer3DModel"), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, scheduler=make_flow_scheduler(),
    )  # fmt: skip
    prompts = {
        "prompt_embeds_qwen": values(1, 7, 24), "negative_prompt_embeds_qwen": values(1, 5, 24),
        "prompt_embeds_clip": values(1, 12), "negative_prompt_embeds_clip": -values(1, 12),
        "prompt_cu_seqlens": torch.tensor([0, 7], dtype=torch.int32),
        "negative_prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
    }  # fmt: skip
    return TinyPipeline(pipeline, {**prompts, **SIZE, "guidance_scale": 4.0})


def make_kandinsky6() -> TinyPipeline:
    pipeline = Kandinsky6TI2VAPipeline(
        transformer=make_transformer("Kandinsky6Transformer3DModel"), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, scheduler=make_flow_scheduler(),
    )  # fmt: skip
    pooled = {"pooled_prompt_embeds": values(1, 12), "negative_pooled_prompt_embeds": -values(1, 12)}
    arguments = {**both_prompts(), **pooled, **SIZE, "guidance_scale": 4.0, "sample_audio": False}
    return TinyPipeline(pipeline, arguments)


def make_cosmos() -> TinyPipeline:
    """Its scheduler is stepped twice a step, once for both branches together."""
    pipeline = CosmosTextToWorldPipeline(
        text_encoder=None, tokenizer=None, vae=None, safety_checker=NoChecker(),
        transformer=make_transformer("CosmosTransformer3DModel"),
        scheduler=EDMEulerScheduler(sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 4.0})


def make_cosmos2_image() -> TinyPipeline:
    pipeline = Cosmos2TextToImagePipeline(
        text_encoder=None, tokenizer=None, vae=None, safety_checker=NoChecker(),
        transformer=make_transformer("CosmosTransformer3DModel"),
        scheduler=make_flow_scheduler(use_karras_sigmas=True),
    )  # fmt: skip
    arguments = {**both_prompts(), "height": 32, "width": 32, "guidance_scale": 4.0}
    return TinyPipeline(pipeline, arguments)


def make_cosmos2_world() -> TinyPipeline:
    """Each branch has hidden states of its own: conditioned and unconditioned frames."""
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=None, tokenizer=None, vae=make_wan_vae(), safety_checker=NoChecker(),
        transformer=make_transformer("CosmosTransformer3DModel", in_channels=5),
        scheduler=make_flow_scheduler(use_karras_sigmas=True),
    )  # fmt: skip
    arguments = {**both_prompts(), **SIZE, "guidance_scale": 4.0, "image": make_picture(32, 32)}
    return TinyPipeline(pipeline, arguments)


def make_cosmos25() -> TinyPipeline:
    pipeline = Cosmos2_5_PredictBasePipeline(
        text_encoder=None, tokenizer=None, vae=make_wan_vae(), safety_checker=NoChecker(),
        transformer=make_transformer("CosmosTransformer3DModel", in_channels=5),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    )  # fmt: skip
    return TinyPipeline(pipeline, {**both_prompts(), **SIZE, "guidance_scale": 4.0})


class NoChecker:
    """Stands where the guardrail would: that reads prompts and decoded pictures, and these cases have neither."""

    def to(self, _: Any) -> None:
        """There are no weights to move."""


CASES = (
    Case("HunyuanVideoPipeline true CFG", "HunyuanVideo", "branch", make_hunyuan_video),
    Case("HunyuanVideoPipeline", "HunyuanVideo", "none", make_hunyuan_video_embedded),
    Case("Kandinsky5T2VPipeline", "Kandinsky 5", "branch", make_kandinsky5_video, is_representative=True),
    Case("Kandinsky6TI2VAPipeline", "Kandinsky 6", "branch", make_kandinsky6),
    Case("CosmosTextToWorldPipeline", "Cosmos", "branch", make_cosmos, is_representative=True),
    Case("Cosmos2TextToImagePipeline", "Cosmos Predict 2", "branch", make_cosmos2_image),
    Case("Cosmos2VideoToWorldPipeline", "Cosmos Predict 2", "branch", make_cosmos2_world),
    Case("Cosmos2_5_PredictBasePipeline", "Cosmos Predict 2.5", "branch", make_cosmos25),
)  # fmt: skip
