"""`heliograph generate`: one group on this machine, one call, one file."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.commands import options
from deployments.commands.exit_status import exit_status
from planner.plan import Mode


def generate(
    checkpoint: options.Checkpoint,
    prompt: Annotated[str, typer.Option(help="What to make.")],
    output: Annotated[Path, typer.Option(help="File to write: .png, .mp4, or .safetensors for latents.")],
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same picture; drawn if left out.")] = None,
    steps: options.Steps = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    size: options.Size = None,
    num_frames: options.NumFrames = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frames a second of the .mp4.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks of the group.")] = None,
    mode: options.ModeOption = Mode.AUTO,
    cfg_degree: options.CfgDegree = None,
    sequence_degree: options.SequenceDegree = None,
    fsdp_degree: options.FsdpDegree = None,
    residency: options.ResidencyOption = None,
    forbid: options.ForbidOption = None,
    prefetch_depth: options.PrefetchDepth = None,
    attention_backend: options.AttentionOption = "auto",
    compile_mode: options.CompileOption = "auto",
    decoding: options.DecodingOption = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    variant: options.Variant = None,
    share_gpu: Annotated[bool, typer.Option("--share-gpu", help="Several ranks on one GPU, for tests.")] = False,
    as_json: options.JsonFlag = False,
) -> None:
    """Makes one picture, video or latents file with a group of its own, and stops everything again.

    Defaults of size, steps and guidance are the checkpoint's.

    Example: `heliograph generate checkpoints/shapes --prompt "a red circle" --output circle.png --ranks 2`
    """
    with exit_status():
        request = options.make_plan_request(
            mode=mode, num_ranks=ranks, cfg_degree=cfg_degree, sequence_degree=sequence_degree,
            fsdp_degree=fsdp_degree, residency=residency, forbid=forbid, prefetch_depth=prefetch_depth,
            attention_backend=attention_backend, compile=compile_mode,
            decoding=decoding,
            device=device, dtype=dtype, variant=variant, share_gpu=share_gpu, size=size, num_frames=num_frames,
            num_inference_steps=steps,
        )  # fmt: skip
        from deployments.commands.one_call import OneCall, run_one_call

        call = OneCall.read(
            output=output, prompt=prompt, negative_prompt=negative_prompt, seed=seed, num_inference_steps=steps,
            guidance_scale=guidance_scale, size=size or "auto", num_frames=num_frames, fps=fps,
        )  # fmt: skip
        report = run_one_call(checkpoint, request, call, as_json=as_json)
        typer.echo(report.to_json() if as_json else report.to_text())
