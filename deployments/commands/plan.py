"""`heliograph plan`: what would be started, and why, from the checkpoint's headers alone."""

from typing import Annotated

import typer

from deployments.commands import options
from deployments.commands.exit_status import exit_status
from planner.plan import Mode

_CLUSTER = "The cluster planned for (default: the live Ray cluster, else cluster.yaml here, else this machine)"


def plan(
    checkpoint: options.Checkpoint,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs a node.", rich_help_panel=_CLUSTER)] = None,
    gpu_type: Annotated[str | None, typer.Option(help="e.g. H100.", rich_help_panel=_CLUSTER)] = None,
    gpu_memory_gib: Annotated[float | None, typer.Option(help="Of one GPU.", rich_help_panel=_CLUSTER)] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes.", rich_help_panel=_CLUSTER)] = None,
    host_memory_gib: Annotated[float | None, typer.Option(help="Of one node.", rich_help_panel=_CLUSTER)] = None,
    cluster: Annotated[str | None, typer.Option(help="A file for `ray up`.", rich_help_panel=_CLUSTER)] = None,
    mode: options.ModeOption = Mode.AUTO,
    size: options.Size = None,
    num_frames: options.NumFrames = None,
    steps: options.Steps = None,
    cfg_degree: options.CfgDegree = None,
    sequence_degree: options.SequenceDegree = None,
    fsdp_degree: options.FsdpDegree = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures or videos at once.")] = None,
    residency: options.ResidencyOption = None,
    forbid: options.ForbidOption = None,
    prefetch_depth: options.PrefetchDepth = None,
    attention_backend: options.AttentionOption = "auto",
    compile_mode: options.CompileOption = "auto",
    decoding: options.DecodingOption = "auto",
    as_json: options.JsonFlag = False,
) -> None:
    """Says how a checkpoint would be run: ranks, residency, load order, memory, and what was ruled out.

    Reads headers only, from a folder or a URL (`hf://`, `s3://`, `https://`, ...); nothing is started. Exit status 3 if
    nothing fits. With `--gpus 0` it plans for CPUs. `HELIOGRAPH_PROFILES` names the folder of calibration profiles.

    Example: `heliograph plan checkpoints/shapes --gpus 2 --gpu-type H100`
    """
    with exit_status():
        request = options.make_plan_request(
            mode=mode, cfg_degree=cfg_degree, sequence_degree=sequence_degree, fsdp_degree=fsdp_degree,
            residency=residency, forbid=forbid, prefetch_depth=prefetch_depth, size=size, num_frames=num_frames,
            num_inference_steps=steps, batch_size=batch, attention_backend=attention_backend, compile=compile_mode,
            decoding=decoding,
        )  # fmt: skip
        from planner.cluster import resolve_cluster

        flags = (gpus, gpu_type, gpu_memory_gib, nodes, host_memory_gib)
        described = resolve_cluster(
            gpus_per_node=gpus, gpu_type=gpu_type, gpu_memory_gib=gpu_memory_gib, num_nodes=nodes,
            host_memory_gib=host_memory_gib, cluster_file=cluster,
            ray_nodes=None if cluster is not None or any(flag is not None for flag in flags) else _live_nodes(),
        )  # fmt: skip
        from deployments.commands.planning import make_plan, print_plan

        print_plan(make_plan(checkpoint, described, request, as_json=as_json), as_json=as_json)


def _live_nodes() -> options.RayNodes:
    from planner.live_cluster import find_live_nodes

    live = find_live_nodes()
    if live.note is not None:
        typer.echo(f"note: {live.note}", err=True)
    return live.nodes
