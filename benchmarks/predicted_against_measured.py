"""What the planner predicts against what one GPU measures, before and after calibration.

    python -m benchmarks.predicted_against_measured [--dry-run] [--case NAME ...]

Each case is a checkpoint without its text encoders: real classes and shapes, random weights made on the machine. It is
planned for uncompiled, its denoisers are placed as the plan says, called at the planned shape, and their latents
decoded. Peaks are of allocated device memory, seconds the median call. Then the same plan is made again with the
measurement, and once more with the measurements of the other cases of that checkpoint only.

Needs one H100 with 80 GB, torch, diffusers, transformers, accelerate and safetensors; no Ray. `--dry-run` runs tiny
models of the same classes on the CPU: the whole way, without figures that mean anything.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from benchmarks.record import keep
from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import Cluster, cluster_from_flags
from planner.costs import resolve_workload, rows_per_call
from planner.measurements import Measurement, measurement_key
from planner.plan import Compilation, ComponentKind, ComponentPlan, Plan, PlanRequest, Residency, ResidencyChoice
from planner.search import plan_group
from tests.tools.skeletons import SKELETONS, Parts, write_parts
from workers.stream_offload import OffloadGroup, apply_offload
from workers.streaming import apply_streaming

GIB = 2**30
NUM_CALLS = 5
H100 = cluster_from_flags(gpus_per_node=1, gpu_type="H100", host_memory_gib=200)
VIDEO = {"width": 832, "height": 480, "num_frames": 81}
PICTURE = {"width": 1024, "height": 1024}
DENOISERS = ("transformer", "transformer_2", "unet")


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration: a checkpoint, what is wished for, and the shape."""

    name: str
    checkpoint: str
    residency: Mapping[str, str] = field(default_factory=dict)
    shape: Mapping[str, int] = field(default_factory=dict)

    def request(self, shape: Mapping[str, int] | None = None) -> PlanRequest:
        choices = {}
        for name, text in self.residency.items():
            kind, _, k = text.partition(":")
            choices[name] = ResidencyChoice(residency=Residency(kind), num_resident_blocks=int(k) if k else None)
        sizes: dict[str, Any] = dict(shape or self.shape)
        return PlanRequest(num_ranks=1, residency=choices, compile=Compilation.NONE, **sizes)


CASES = (
    Case("Wan 1.3B, resident", "Wan2.1-T2V-1.3B", {"transformer": "resident"}, VIDEO),
    Case("Wan 14B, layerwise:0", "Wan2.1-T2V-14B", {"transformer": "layerwise:0"}, VIDEO),
    Case("Wan 14B, layerwise:10", "Wan2.1-T2V-14B", {"transformer": "layerwise:10"}, VIDEO),
    Case("FLUX.1-dev, resident", "FLUX.1-dev", {"transformer": "resident"}, PICTURE),
    Case("Wan 14B + 14B, auto", "Wan2.2-T2V-A14B", {}, VIDEO),
    Case("SDXL UNet, resident", "SDXL", {"unet": "resident"}, PICTURE),
)
SMALL_SHAPE = {"width": 64, "height": 64, "num_frames": 5}


@dataclass(slots=True)
class Measured:
    """Peaks by stage in bytes (empty on a CPU), and the seconds of a denoising step."""

    peaks: dict[str, int]
    step_s: float


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the cases, keeps and prints the rows, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--folder", type=Path, help="where the figures are kept")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.case is None or case.name in options.case]
    device = torch.device("cpu" if options.dry_run else "cuda")
    with tempfile.TemporaryDirectory() as scratch:
        rows = _run(cases, Path(scratch), device=device, is_small=options.dry_run)
    keep("predicted_against_measured_dry_run" if options.dry_run else "predicted_against_measured", rows,
         folder=options.folder)  # fmt: skip
    return rows


def _run(cases: list[Case], scratch: Path, *, device: torch.device, is_small: bool) -> list[dict[str, Any]]:
    planned: list[tuple[Case, Checkpoint, PlanRequest, Plan, Measured]] = []
    for case in cases:
        parts = _parts(case.checkpoint, is_small=is_small)
        checkpoint = read_checkpoint(str(_write(scratch, case.checkpoint, parts)))
        request = case.request(SMALL_SHAPE if is_small else None)
        plan = plan_group(checkpoint, H100, request)
        measured = _measure(plan, checkpoint, parts, request, device=device)
        planned.append((case, checkpoint, request, plan, measured))
    measurements = {case.name: _measurement(plan, measured) for case, _, _, plan, measured in planned}
    rows: list[dict[str, Any]] = []
    for case, checkpoint, request, plan, measured in planned:
        others = [m for name, m in measurements.items() if name != case.name]
        after = _replan(checkpoint, H100, request, [measurements[case.name]], plan)
        crossed = _replan(checkpoint, H100, request, others, plan)
        rows.append(_row(case, plan, measured, after, crossed))
    return rows


def _row(case: Case, plan: Plan, measured: Measured, after: Plan, crossed: Plan) -> dict[str, Any]:
    stages = {moment.stage: max(moment.gpu_bytes) for moment in plan.memory.timeline}
    return {
        "case": case.name,
        "plan": ", ".join(f"{c.name}={_placed(c)}" for c in plan.components),
        "denoise_predicted_gib": stages["denoise"] / GIB,
        "denoise_measured_gib": measured.peaks.get("denoise", 0) / GIB,
        "decode_predicted_gib": stages["decode"] / GIB,
        "decode_measured_gib": measured.peaks.get("decode", 0) / GIB,
        "peak_predicted_gib": max(plan.memory.gpu_peak_bytes) / GIB,
        "peak_measured_gib": max(measured.peaks.values(), default=0) / GIB,
        "peak_calibrated_gib": max(after.memory.gpu_peak_bytes) / GIB,
        "peak_by_other_cases_gib": max(crossed.memory.gpu_peak_bytes) / GIB,
        "step_predicted_s": plan.predicted.step_s,
        "step_measured_s": measured.step_s,
        "step_calibrated_s": after.predicted.step_s,
        "step_by_other_cases_s": crossed.predicted.step_s,
    }


def _placed(component: ComponentPlan) -> str:
    k = f":{component.num_resident_blocks}" if component.num_resident_blocks is not None else ""
    return f"{component.residency}{k}"


def _replan(
    checkpoint: Checkpoint, cluster: Cluster, request: PlanRequest, measurements: list[Measurement], before: Plan
) -> Plan:
    """The plan with measurements, placed as it was before, so that the same thing is compared."""
    stated = {
        c.name: ResidencyChoice(residency=c.residency, num_resident_blocks=c.num_resident_blocks)
        for c in before.components
    }
    fixed = request.model_copy(update={"residency": stated})
    return plan_group(checkpoint, cluster, fixed, measurements=measurements)


def _measurement(plan: Plan, measured: Measured) -> Measurement:
    key = measurement_key(plan)
    assert key is not None
    peak = max(measured.peaks.values(), default=0) or max(plan.memory.gpu_peak_bytes)  # a CPU has no such peak
    return Measurement(key=key, gpu_peak_bytes=(peak,), step_samples_s=(measured.step_s,), updated_at=time.time())


# Checkpoints


def _parts(name: str, *, is_small: bool) -> Parts:
    """The builders of a checkpoint's denoisers and autoencoder."""
    parts = _SMALL_PARTS[name] if is_small else SKELETONS[name][1]
    return {part: build for part, build in parts.items() if part in {*DENOISERS, "vae"}}


def _write(scratch: Path, name: str, parts: Parts) -> Path:
    folder = scratch / name
    return folder if folder.exists() else write_parts(folder, SKELETONS[name][0], parts)


def _small_wan(*, num_layers: int = 4) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=num_layers, ffn_dim=32, text_dim=16, freq_dim=16
    )


def _small_deep_wan() -> Any:
    return _small_wan(num_layers=12)


def _small_vae(latent_channels: int) -> Callable[[], Any]:
    return lambda: diffusers.AutoencoderKL(
        latent_channels=latent_channels, block_out_channels=(8,) * 4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _small_wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1)


def _small_flux() -> Any:
    return diffusers.FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip


def _small_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64, use_linear_projection=True,
    )  # fmt: skip


_SMALL_PARTS: dict[str, Parts] = {
    "Wan2.1-T2V-1.3B": {"transformer": _small_wan, "vae": _small_wan_vae},
    "Wan2.1-T2V-14B": {"transformer": _small_deep_wan, "vae": _small_wan_vae},
    "Wan2.2-T2V-A14B": {"transformer": _small_wan, "transformer_2": _small_wan, "vae": _small_wan_vae},
    "FLUX.1-dev": {"transformer": _small_flux, "vae": _small_vae(16)},
    "SDXL": {"unet": _small_unet, "vae": _small_vae(4)},
}


# Measuring


@torch.no_grad()
def _measure(
    plan: Plan, checkpoint: Checkpoint, parts: Parts, request: PlanRequest, *, device: torch.device
) -> Measured:
    """Places the components as planned, runs the denoisers, decodes."""
    _free(device)
    dtype = getattr(torch, plan.dtype)
    turns = OffloadGroup()
    modules = {c.name: _place(c, parts[c.name], turns, device=device, dtype=dtype) for c in plan.components}
    denoisers = [c.name for c in plan.components if c.kind is ComponentKind.DENOISER]
    workload = resolve_workload(checkpoint, request)
    rows = rows_per_call(checkpoint, workload, cfg_degree=1)
    calls_a_step = workload.num_branches * workload.batch_size // rows
    peaks: dict[str, int] = {}
    call_s: list[float] = []
    for name in denoisers:
        arguments = _arguments(modules[name], plan, rows=rows, device=device, dtype=dtype)
        call_s.append(_time(partial(modules[name], **arguments), device))
    peaks |= _peak("denoise", device)
    turns.unload_all()
    vae: Any = modules["vae"]
    latents = _latents(checkpoint, plan, device=device, dtype=dtype)
    vae.decode(latents, return_dict=False)
    peaks |= _peak("decode", device)
    return Measured(peaks, calls_a_step * statistics.mean(call_s))


def _place(
    component: ComponentPlan, build: Callable[[], Any], turns: OffloadGroup, *, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    if component.residency is Residency.RESIDENT:
        return build_random(build, device=device, dtype=dtype)
    module = build_random(build, device=torch.device("cpu"), dtype=dtype)
    if component.residency is Residency.OFFLOAD:
        apply_offload(module, device=device, group=turns)
    else:
        apply_streaming(
            module,
            device=device,
            num_resident_blocks=component.num_resident_blocks or 0,
            prefetch_depth=component.prefetch_depth or 1,
        )
    return module


def build_random(build: Callable[[], Any], *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, made where they stay; what stays in float32 does (a GPU clocks higher on zeros)."""
    with init_empty_weights():
        model: nn.Module = build().eval()
    kept = frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    pattern = 0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    patterns = {precision: pattern.to(device, precision) for precision in (dtype, torch.float32)}
    for name, parameter in list(model.named_parameters()):
        source = patterns[dtype if kept.isdisjoint(name.split(".")) else torch.float32]
        values = torch.empty(parameter.shape, dtype=source.dtype, device=device)
        flat = values.view(-1)
        for start in range(0, flat.numel(), source.numel()):
            piece = flat[start : start + source.numel()]
            piece.copy_(source[: piece.numel()])
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(values, requires_grad=False))
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = buffer.to(device)
    return model


def _arguments(module: nn.Module, plan: Plan, *, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of one denoiser call at the planned shape."""
    model: Any = module
    shape, config = plan.shape, dict(model.config)
    assert shape is not None
    height, width = shape.height // 8, shape.width // 8

    def values(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(device, dtype)

    if isinstance(module, diffusers.WanTransformer3DModel):
        frames = (shape.num_frames - 1) // 4 + 1
        return {
            "hidden_states": values(rows, config["in_channels"], frames, height, width),
            "timestep": torch.full((rows,), 500, device=device),
            "encoder_hidden_states": values(rows, 512, config["text_dim"]),
            "return_dict": False,
        }
    if isinstance(module, diffusers.UNet2DConditionModel):
        embedded = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        conditions = {"text_embeds": values(rows, embedded), "time_ids": values(rows, 6)}
        return {
            "sample": values(rows, config["in_channels"], height, width),
            "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": values(rows, 77, config["cross_attention_dim"]),
            "added_cond_kwargs": conditions,
            "return_dict": False,
        }
    tokens = (height // 2) * (width // 2)
    ids = torch.zeros(tokens, 3)
    ids[:, 1], ids[:, 2] = torch.arange(tokens) // (width // 2), torch.arange(tokens) % (width // 2)
    return {
        "hidden_states": values(rows, tokens, config["in_channels"]),
        "encoder_hidden_states": values(rows, 512, config["joint_attention_dim"]),
        "pooled_projections": values(rows, config["pooled_projection_dim"]),
        "timestep": torch.full((rows,), 0.5, device=device, dtype=dtype),
        "guidance": torch.full((rows,), 3.5, device=device),
        "img_ids": ids.to(device, dtype),
        "txt_ids": torch.zeros(512, 3, device=device, dtype=dtype),
        "return_dict": False,
    }


def _latents(checkpoint: Checkpoint, plan: Plan, *, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    vae = checkpoint.find("vae")
    assert vae is not None
    assert plan.shape is not None
    channels = vae.config.get("z_dim") or vae.config["latent_channels"]
    frames = [(plan.shape.num_frames - 1) // 4 + 1] if "z_dim" in vae.config else []
    size = (plan.shape.batch_size, channels, *frames, plan.shape.height // 8, plan.shape.width // 8)
    return torch.randn(size).to(device, dtype)


def _time(call: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(1 + NUM_CALLS):  # the first makes kernels and learns the order of the blocks
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _peak(stage: str, device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    peak = int(torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return {stage: peak}


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
