"""Why a pipeline that guides has no case in the matrix: one line a family."""

import re
from collections.abc import Iterable

from tests.seam.cases import ALL_CASES
from tests.seam.guided_pipelines import guided_pipelines

_SAME = "denoiser and guidance as in"

REASONS: tuple[tuple[str, str], ...] = (
    (r".*PAG.*", f"{_SAME} StableDiffusionPAGPipeline: perturbed attention, on the leader"),
    (r"AnimateDiff(SDXL|SparseControlNet|VideoToVideoControlNet)", f"{_SAME} AnimateDiff with and without ControlNet"),
    (r"AnyFlowFAR", "keeps keys and values of earlier frames between calls; AnyFlowPipeline is covered"),
    (r"StableDiffusionXLControlNet", f"{_SAME} StableDiffusionXLControlNetPipeline and its union"),
    (r"StableDiffusion3ControlNetInpainting", f"{_SAME} StableDiffusion3ControlNetPipeline"),
    (r"StableDiffusionXLAdapter", f"{_SAME} StableDiffusionXLPipeline, with an adapter's features"),
    (r"StableDiffusion(ImageVariation|LatentUpscale)|StableUnCLIP", f"{_SAME} StableDiffusionPipeline, after encoders"),
    (r"BlipDiffusion", "needs BLIP-2's query transformer; the UNet and its ControlNet are Stable Diffusion's"),
    (r"KolorsImg2Img", f"{_SAME} KolorsPipeline"),
    (r"IF(Inpainting|.*SuperResolution)", f"{_SAME} IFPipeline and IFImg2ImgPipeline"),
    (r"Kandinsky3Img2Img", f"{_SAME} Kandinsky3Pipeline"),
    (r"Kandinsky.*Combined|StableCascadeCombined", "runs two of the other pipelines one after the other"),
    (r"Kandinsky(V22)?Prior", "has no way to be given embeddings, and needs CLIP for texts and pictures"),
    (r"Kandinsky(V22)?(|Controlnet|ControlnetImg2Img|Img2Img|Inpaint)Pipeline", f"{_SAME} KandinskyV22Pipeline"),
    (r"BriaFibo2", "one call a branch; no case yet"),
    (r"BriaFibo", "has no way to be given embeddings, and needs a SmolLM3; BriaPipeline is covered"),
    (r"CogVideoXFunControl", f"{_SAME} CogVideoXImageToVideoPipeline"),
    (r"ConsisID", "needs OpenCV; the transformer is CogVideoX's with faces"),
    (r"DreamLite", "has no way to be given embeddings, and needs a Qwen3-VL"),
    (r"EasyAnimate(Control|Inpaint)", f"{_SAME} EasyAnimatePipeline"),
    (r"Ideogram4", "has no way to be given embeddings, and needs a Qwen3-VL; each branch has its own transformer"),
    (r"LTX2(DFR|HDR|InContext)", f"{_SAME} LTX2Pipeline and LTX2ConditionPipeline"),
    (r"LTXI2VLongMultiPrompt", f"{_SAME} LTXImageToVideoPipeline, window by window"),
    (r"PRXPixel", f"{_SAME} PRXPipeline"),
    (r"SanaWM", "needs a camera path; its transformer has no tiny configuration yet"),
    (r"ZImage(ControlNetInpaint|Omni)", f"{_SAME} ZImagePipeline and ZImageControlNetPipeline"),
    (r"AudioLDM2|StableAudio3|AceStep|LongCatAudio", "sound, which is not served; StableAudioPipeline is covered"),
    (r"LDMTextToImage|ShapE|LEdits", "early research pipelines, with loops and components of their own"),
    (r"Chroma(Img2Img|Inpaint)", f"{_SAME} ChromaPipeline"),
    (r"CogView4Control", f"{_SAME} CogView4Pipeline"),
    (r"Cosmos", f"{_SAME} the covered Cosmos pipelines, with other inputs"),
    (r"Flux2KleinKV", "keeps keys and values of the pictures between calls; Flux2KleinPipeline is covered"),
    (r"Flux2Klein", f"{_SAME} Flux2KleinPipeline"),
    (r"Flux(Control|Fill)|VisualCloze", "guidance is an input of the model: one call a step"),
    (r"Flux", f"{_SAME} FluxPipeline with true CFG"),
    (r"GlmImage", "needs a vision-language model that writes picture tokens first"),
    (r"Helios", "keeps a history of frames; the transformer is Wan's"),
    (r"HunyuanImageRefiner", f"{_SAME} HunyuanImagePipeline"),
    (r"HunyuanVideo15", f"{_SAME} HunyuanVideo15Pipeline"),
    (r"HunyuanVideoFramepack", "makes sections of frames one after the other; HunyuanVideoPipeline is covered"),
    (r"Hunyuan(Skyreels|Video)", f"{_SAME} HunyuanVideoPipeline with true CFG"),
    (r"Kandinsky5", f"{_SAME} Kandinsky5T2VPipeline"),
    (r"Krea2|LongCatImage|NucleusMoE", "one call a branch, as QwenImagePipeline; a transformer of its own"),
    (r"LatentConsistencyModelImg2Img|SanaSprintImg2Img", "guidance is an input of the model: one call a step"),
    (r"MotifVideoImage2Video", f"{_SAME} MotifVideoPipeline"),
    (r"QwenImageControlNet", "one call a branch; the ControlNet as in FluxControlNetPipeline"),
    (r"QwenImage", f"{_SAME} QwenImagePipeline and QwenImageEditPipeline"),
    (r"SkyReelsV2", f"{_SAME} SkyReelsV2Pipeline and SkyReelsV2DiffusionForcingPipeline"),
    (r"Wan", f"{_SAME} WanPipeline; needs a face encoder"),
)
"""Regular expressions on the beginning of a class name, and the reason; the first match counts."""


def uncovered_pipelines() -> dict[str, str]:
    """Reason by class name of every guided pipeline without a case.

    Raises:
        LookupError: a pipeline has neither a case nor a reason.
    """
    covered = {case.pipeline_class for case in ALL_CASES}
    return {name: _reason(name) for name in guided_pipelines() if name not in covered}


def unused_reasons(names: Iterable[str]) -> list[str]:
    """Patterns that explain none of `names`."""
    used = {_first_match(name) for name in names}
    return [pattern for pattern, _ in REASONS if pattern not in used]


def _reason(name: str) -> str:
    pattern = _first_match(name)
    if pattern is None:
        raise LookupError(f"{name} guides and has neither a case nor a reason why not")
    return dict(REASONS)[pattern]


def _first_match(name: str) -> str | None:
    return next((pattern for pattern, _ in REASONS if re.match(pattern, name)), None)
