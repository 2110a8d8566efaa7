"""A request as it is served (prompt, steps, decode), on the planner's placement and on diffusers' offloading."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from benchmarks import architectures as arch
from benchmarks.measuring import GIB, Options, free, peak_gib, scratch_in_memory, synchronize, time_once
from planner.checkpoint import read_checkpoint
from planner.cluster import Cluster, cluster_from_flags
from planner.plan import Compilation, Mode, Plan, PlanRequest, Residency
from planner.search import plan_group
from workers.residency import Placer
from workers.stream_offload import OffloadGroup
from workers.streaming import StreamedModule

Side = Literal["heliograph auto", "model cpu offload", "group offload"]
SIDES: tuple[Side, ...] = ("heliograph auto", "model cpu offload", "group offload")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A side that is ready to run requests."""

    run: Callable[["StageClock"], Tensor]
    how: str


class StageClock:
    """When the device has done a request's stages; it waits for nothing, so that they overlap as they do in service."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []
        self.mark("start")

    def mark(self, stage: str) -> None:
        """The stage's work has been handed to the device."""
        if self._device.type != "cuda":
            self._marks.append((stage, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((stage, event))

    def seconds(self) -> dict[str, float]:
        """Of each stage, by `NAME_s`; after the request."""
        synchronize(self._device)
        return {
            f"{stage}_s": end - before if isinstance(end, float) else before.elapsed_time(end) / 1e3
            for (_, before), (stage, end) in pairwise(self._marks)
        }


class Ballast:
    """Device memory that is taken away, so that the GPU has `limit_gib` in all, its context included."""

    def __init__(self, options: Options, limit_gib: float | None) -> None:
        self.num_bytes = 0
        self._memory: Tensor | None = None
        if limit_gib is None or options.device.type != "cuda":
            return
        total = torch.cuda.mem_get_info(options.device)[1]
        self.num_bytes = max(0, total - int(limit_gib * GIB))
        self._memory = torch.empty(self.num_bytes, dtype=torch.uint8, device=options.device)

    def release(self) -> None:
        self._memory = None


def measure_side(side: Side, request: arch.Request, options: Options, *, limit_gib: float | None) -> dict[str, Any]:
    """One side: set-up, a first request (with compilation), and one that counts. Out of memory is a result too."""
    free(options.device)
    with scratch_in_memory() as folder:
        prepare = _prepare_ours if side == "heliograph auto" else _prepare_diffusers
        setup_s, prepared = time_once(lambda: prepare(side, request, Path(folder), options, limit_gib), options)
    free(options.device)
    ballast = Ballast(options, limit_gib)
    missing = float("nan")
    row: dict[str, Any] = {
        "request": request.name, "side": side, "setup_s": setup_s, "first_s": missing, "request_s": missing,
        "encode_s": missing, "denoise_s": missing, "decode_s": missing, "peak_gib": missing, "finite": False,
        "how": prepared.how,
    }  # fmt: skip
    try:
        with torch.no_grad():
            row["first_s"], _ = time_once(lambda: prepared.run(StageClock(options.device)), options)
            clock = StageClock(options.device)
            row["request_s"], result = time_once(lambda: prepared.run(clock), options)
        row |= clock.seconds()
        row["finite"] = bool(result.isfinite().all())
        row["peak_gib"] = peak_gib(options.device) - ballast.num_bytes / GIB
    except torch.OutOfMemoryError as error:
        row["how"] += f"; {error}"
    ballast.release()
    print(json.dumps(row), flush=True)  # a side takes a minute or more, and the next one may be killed for its memory
    return row


def _prepare_ours(_: Side, request: arch.Request, folder: Path, options: Options, limit_gib: float | None) -> Prepared:
    arch.write_sparse_checkpoint(request, folder, dtype=options.dtype)
    plan = make_plan(request, folder, options, limit_gib)
    turns = OffloadGroup()
    placer = Placer(plan, options.device, None, turns)
    modules: dict[str, nn.Module] = {}
    streamed: list[StreamedModule] = []
    offloaded: set[str] = set()
    for component in sorted(plan.components, key=lambda component: component.load_order):
        placed = placer.place(component)
        modules[component.name] = placed.loaded.module
        arch.fill_random(placed.loaded.module, seed=0, device=options.device)
        if placed.streamed is not None:
            streamed.append(placed.streamed)
        if placed.residency is Residency.OFFLOAD:
            offloaded.add(component.name)

    def before(name: str) -> None:
        if name not in offloaded:
            turns.unload_all()

    def run(clock: StageClock) -> Tensor:
        for handle in streamed:
            handle.forget()
            handle.prefetch()
        return run_request(request, modules, options, clock, before_denoiser=before)

    return Prepared(run, ", ".join(f"{c.name}={_text(c)}" for c in plan.components) + f"; compiled: {plan.compile}")


def make_plan(request: arch.Request, folder: Path, options: Options, limit_gib: float | None) -> Plan:
    """The planner's answer for this machine with a GPU of `limit_gib` (an H100's memory if None)."""
    is_gpu = options.device.type == "cuda"
    wishes = PlanRequest(
        mode=Mode.AUTO if is_gpu else Mode.MEMORY,  # tiny models fit anywhere: so that the dry run streams and offloads
        width=request.shape.width, height=request.shape.height, num_inference_steps=request.num_steps,
        num_frames=request.shape.num_frames if request.shape.num_frames > 1 else None, dtype="bfloat16",
    )  # fmt: skip
    plan = plan_group(read_checkpoint(str(folder)), _cluster(limit_gib), wishes)
    if is_gpu:
        return plan
    # The dry run carries out a GPU's plan on the CPU: the same placement, with a CPU's dtype and nothing compiled.
    return plan.model_copy(update={"device": "cpu", "dtype": "float32", "compile": Compilation.NONE})


def _cluster(limit_gib: float | None) -> Cluster:
    return cluster_from_flags(
        gpus_per_node=1, gpu_type="H100", gpu_memory_gib=limit_gib, host_memory_gib=psutil.virtual_memory().total / GIB
    )


def _text(component: Any) -> str:
    if component.residency is Residency.LAYERWISE:
        return f"layerwise:{component.num_resident_blocks}"
    return str(component.residency)


class _RequestPipeline(DiffusionPipeline):  # type: ignore[misc, unused-ignore]
    """Components and their order, so that diffusers' own offloading can be switched on."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->transformer_2->vae"
    _optional_components = ("text_encoder", "text_encoder_2", "transformer_2")

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module | None = None,
        text_encoder_2: nn.Module | None = None,
        transformer_2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder_2,
            transformer_2=transformer_2,
        )  # fmt: skip


def _prepare_diffusers(
    side: Side, request: arch.Request, folder: Path, options: Options, _limit_gib: float | None
) -> Prepared:
    modules = {}
    for name, architecture in request.components.items():
        built = arch.build_random(architecture, folder / name, device=options.device, dtype=options.dtype)
        modules[name] = built.to("cpu")
        del built
        free(options.device)
    pipeline = _RequestPipeline(**modules)
    if side == "model cpu offload":
        pipeline.enable_model_cpu_offload(device=options.device)
    else:
        pipeline.enable_group_offload(
            onload_device=options.device, offload_device=torch.device("cpu"), offload_type="block_level",
            num_blocks_per_group=1, use_stream=options.device.type == "cuda",
            exclude_modules="vae",  # its hooks bring what is outside of blocks for `forward` only, not for `decode`
        )  # fmt: skip
        pipeline.vae.to(options.device)

    def run(clock: StageClock) -> Tensor:
        result = run_request(request, modules, options, clock, before_denoiser=lambda _: None)
        if side == "model cpu offload":
            pipeline.maybe_free_model_hooks()
        return result

    return Prepared(run, "diffusers, eager")


def run_request(
    request: arch.Request,
    modules: Mapping[str, nn.Module],
    options: Options,
    clock: StageClock,
    *,
    before_denoiser: Callable[[str], None],
) -> Tensor:
    """Encodes a prompt a branch, runs the steps, the first half with the first denoiser, and decodes.

    Returns:
        The decoded pixels.
    """
    device, dtype = options.device, options.dtype
    encoder = next((name for name in modules if name.startswith("text_encoder")), None)
    for branch in range(request.num_branches):
        if encoder is not None:
            tokens = torch.full((1, request.shape.text_tokens), 1 + branch, device=device)
            modules[encoder](input_ids=tokens, attention_mask=torch.ones_like(tokens))
    clock.mark("encode")
    for step in range(request.num_steps):
        name = request.denoisers[step * len(request.denoisers) // request.num_steps]
        inputs = arch.denoiser_inputs(request.components[name], request.shape, device, dtype)
        for _ in range(request.num_branches):
            before_denoiser(name)
            modules[name](**inputs, return_dict=False)
    clock.mark("denoise")
    vae: Any = modules["vae"]
    pixels: Tensor = vae.decode(_latents(request, options), return_dict=False)[0]
    clock.mark("decode")
    return pixels


def _latents(request: arch.Request, options: Options) -> Tensor:
    shape = request.shape
    config = request.components["vae"].config
    channels = config.get("z_dim") or config["latent_channels"]
    sizes = (shape.height // 8, shape.width // 8)
    is_video = "z_dim" in config
    size = (1, channels, shape.latent_frames, *sizes) if is_video else (1, channels, *sizes)
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(options.device, options.dtype)
