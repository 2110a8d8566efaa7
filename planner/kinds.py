"""What a component is to its pipeline, told from its name and class."""

import re

from planner.plan import ComponentKind

_VAE_NAME = re.compile(r"^(.*_)?(vae|vqvae|vqgan|movq)(_\d+)?$")
_TEXT_NAME = re.compile(r"^(text_encoder|text_model|mllm|language_model|prior_text_encoder)(_\d+)?$")
_IMAGE_NAME = re.compile(r"^(image_encoder|vision_encoder|siglip|prior_image_encoder)(_\d+)?$")
_DENOISER_NAME = re.compile(r"^(transformer|unet|dit|denoiser|prior|decoder|prior_prior)(_\d+)?$")
_VAE_CLASS = re.compile(r"^(Autoencoder|AsymmetricAutoencoder|ConsistencyDecoderVAE|VQModel|PaellaVQModel|Oobleck)")
_IMAGE_CLASS = re.compile(r"(VisionModel|VisionModelWithProjection|ImageEncoder|Dinov2Model|SiglipModel)$")
_DENOISER_CLASS = re.compile(r"(Transformer|UNet|Prior|DiT)")
_CONTROLNET_CLASS = re.compile(r"^(?!UNet).*ControlNet(?!XSAdapter)")
"""`UNetControlNetXSModel` is a denoiser with the control inside; its pipeline merges the XS adapter into it."""


def classify_component(name: str, *, class_name: str, library: str) -> ComponentKind:
    """The kind of a component; its name decides before its class. An alias is classified by the alias."""
    if library == "diffusers" and _CONTROLNET_CLASS.search(class_name):
        return ComponentKind.CONTROLNET
    if _VAE_NAME.match(name) or _VAE_CLASS.match(class_name):
        return ComponentKind.VAE
    if _TEXT_NAME.match(name):
        return ComponentKind.TEXT_ENCODER
    if _IMAGE_NAME.match(name):
        return ComponentKind.IMAGE_ENCODER
    if library == "diffusers" and (_DENOISER_NAME.match(name) or _DENOISER_CLASS.search(class_name)):
        return ComponentKind.DENOISER
    if library == "transformers" and _IMAGE_CLASS.search(class_name):
        return ComponentKind.IMAGE_ENCODER
    return ComponentKind.OTHER


def runs_every_step(kind: ComponentKind) -> bool:
    """Whether the pipeline calls it in the denoising loop: then every rank holds it, and the seam divides its calls."""
    return kind in {ComponentKind.DENOISER, ComponentKind.CONTROLNET}
