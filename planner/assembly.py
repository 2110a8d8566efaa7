"""The chosen option as a `Plan`."""

import functools
import hashlib
import json
from collections.abc import Sequence

from planner.bundles import count_groups, make_bundles, select_node, smallest_of_each_type
from planner.calibration import planned_shape
from planner.cluster import Cluster, cluster_to_json
from planner.context import PlanContext
from planner.evaluation import Candidate, residency_text
from planner.fallbacks import find_fallbacks
from planner.load_order import LoadPosition
from planner.memory import Placement, pinned_bytes
from planner.nodes import ranks_per_node
from planner.plan import ComponentPlan, GroupPlan, MemoryPlan, Plan, PlanRequest, RejectedOption, Residency


def make_plan(
    chosen: Candidate,
    context: PlanContext,
    cluster: Cluster,
    rejected: Sequence[RejectedOption],
    *,
    others: Sequence[Candidate] = (),
) -> Plan:
    """The plan of `chosen`; `others` are options for the same ranks, best first, to fall back to."""
    checkpoint, request = context.checkpoint, context.request
    num_ranks = chosen.degrees.num_ranks
    host_capacity = chosen.node.host_memory_bytes
    selection = select_node(chosen.node, smallest_of_each_type(cluster.node_types))
    bundles = make_bundles(chosen, context, selection)
    plan = Plan(
        checkpoint=checkpoint.path,
        checkpoint_fingerprint=checkpoint.fingerprint,
        pipeline_class=checkpoint.pipeline_class,
        mode=request.mode,
        device="cuda" if context.device == "cuda" else "cpu",
        gpu_type=chosen.node.gpu_type if context.device == "cuda" else None,
        dtype=context.dtype,  # type: ignore[arg-type]
        variant=checkpoint.variant,
        step_cache=request.step_cache,
        shape=planned_shape(context.workload),
        payload_bytes=checkpoint.payload_bytes,
        components=tuple(
            _component_plan(p, position, chosen, context)
            for p, position in zip(chosen.placements, context.order, strict=True)
        ),
        group=GroupPlan(
            num_ranks=num_ranks,
            cfg_degree=chosen.degrees.cfg,
            sequence_degree=chosen.degrees.sequence,
            fsdp_degree=chosen.degrees.fsdp,
            bundles=bundles,
            node_labels=selection.labels,
            max_groups=count_groups(bundles, chosen, selection, cluster),
            strategy="PACK" if chosen.spans_nodes else "STRICT_PACK",
            share_gpu=request.share_gpu,
        ),
        memory=MemoryPlan(
            gpu_peak_bytes=chosen.moments.gpu_peak_bytes,
            gpu_capacity_bytes=(chosen.gpu_capacity_bytes,) * num_ranks,
            host_peak_bytes=chosen.moments.host_peak_bytes,
            host_capacity_bytes=host_capacity,
            timeline=chosen.moments.timeline,
        ),
        predicted=chosen.times.predicted(),
        corrections=chosen.corrections,
        defaults=checkpoint.defaults,
        rejected=tuple(rejected),
        fingerprint="",
        attention_backends=chosen.execution.attention_backends,
        compile=chosen.execution.compile,
        decoding=chosen.execution.decoding,
        fallbacks=find_fallbacks(
            chosen.placements,
            (c.placements for c in others),
            pinned_bytes_of=functools.partial(
                pinned_bytes,
                degrees=chosen.degrees,
                dtype=context.dtype,
                ranks_on_node=min(num_ranks, ranks_per_node(chosen.degrees, chosen.node, context)),
            ),
        ),
    )
    return plan.model_copy(update={"fingerprint": _fingerprint(plan, cluster, request)})


def _component_plan(
    placement: Placement, position: LoadPosition, chosen: Candidate, context: PlanContext
) -> ComponentPlan:
    component = placement.component
    layerwise = placement.residency is Residency.LAYERWISE
    why = "as stated" if component.name in context.request.residency else f"chosen for mode {context.request.mode}"
    if layerwise and component.name in chosen.knees:
        why += f"; {_knee_text(placement, chosen.knees[component.name])}"
    return ComponentPlan(
        name=component.name,
        library=component.library,
        class_name=component.class_name,
        kind=component.kind,
        payload_bytes=component.payload_bytes,
        num_parameters=component.num_parameters,
        num_blocks=len(component.blocks),
        block_rule=component.block_rule.describe() if component.block_rule else None,
        residency=placement.residency,
        num_resident_blocks=placement.num_resident_blocks if layerwise else None,
        prefetch_depth=placement.prefetch_depth if layerwise else None,
        shard_by=placement.shard_by if placement.residency is Residency.SHARDED else None,
        ranks=placement.ranks,
        load_order=position.load_order,
        reason=f"loads {position.reason}; {residency_text(placement)}: {why}",
    )


def _knee_text(placement: Placement, knee: int) -> str:
    if placement.num_resident_blocks < knee:
        return f"copying hides under compute only from {knee} resident blocks on"
    return f"copying hides under compute from {knee} resident blocks on"


def _fingerprint(plan: Plan, cluster: Cluster, request: PlanRequest) -> str:
    # The path is left out: the same checkpoint elsewhere gives the same fingerprint.
    content = plan.model_dump(mode="json", exclude={"fingerprint", "checkpoint"})
    text = json.dumps([content, cluster_to_json(cluster), request.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
