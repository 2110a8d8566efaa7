"""`heliograph plan`: what would be started, and why, from the checkpoint's headers alone."""

from typing import Annotated

import typer

from deployments.commands import options
from deployments.commands.exit_status import exit_status
from planner.plan import Mode

_CLUSTER = "The cluster planned for (default: cluster.yaml here, else this machine)"


def plan(
    checkpoint: options.Checkpoint,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs a node.", rich_help_panel=_CLUSTER)] = None,
    gpu_type: Annotated[str | None, typer.Option(help="e.g. H100.", rich_help_panel=_CLUSTER)] = None,
    gpu_memory_gib: Annotated[float | None, typer.Option(help="Of one GPU.", rich_help_panel=_CLUSTER)] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes.", rich_help_panel=_CLUSTER)] = None,
    host_memory_gib: Annotated[float | None, typer.Option(help="Of one node.", rich_help_panel=_CLUSTER)] = None,
    cluster: Annotated[str | None, typer.Option(help="A file for `ray up`.", rich_help_panel=_CLUSTER)] = None,
    mode: options.ModeOption = Mode.AUTO,
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks of a group.")] = None,
    cfg_degree: options.CfgDegree = None,
    sequence_degree: options.SequenceDegree = None,
    fsdp_degree: options.FsdpDegree = None,
    residency: options.ResidencyOption = None,
    forbid: options.ForbidOption = None,
    prefetch_depth: options.PrefetchDepth = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    variant: options.Variant = None,
    size: options.Size = None,
    num_frames: options.NumFrames = None,
    steps: options.Steps = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures or videos at once.")] = None,
    as_json: options.JsonFlag = False,
) -> None:
    """Says how a checkpoint would be run: ranks, residency, load order, memory, and what was ruled out.

    Reads headers only; nothing is started. Exit status 3 if nothing fits.

    Example: `heliograph plan checkpoints/shapes --device cpu --cfg-degree 2`
    """
    with exit_status():
        request = options.make_plan_request(
            mode=mode, num_ranks=ranks, cfg_degree=cfg_degree, sequence_degree=sequence_degree,
            fsdp_degree=fsdp_degree, residency=residency, forbid=forbid, prefetch_depth=prefetch_depth,
            device=device, dtype=dtype, variant=variant, size=size, num_frames=num_frames,
            num_inference_steps=steps, batch_size=batch,
        )  # fmt: skip
        from planner.cluster import resolve_cluster

        described = resolve_cluster(
            gpus_per_node=gpus, gpu_type=gpu_type, gpu_memory_gib=gpu_memory_gib, num_nodes=nodes,
            host_memory_gib=host_memory_gib, cluster_file=cluster,
        )  # fmt: skip
        from deployments.commands.planning import make_plan, print_plan

        print_plan(make_plan(checkpoint, described, request, as_json=as_json), as_json=as_json)
