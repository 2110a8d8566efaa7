"""Which nodes can hold a group's ranks, and how many of them."""

import math
from dataclasses import replace

from planner.cluster import Cluster, NodeType, size_of
from planner.context import PlanContext
from planner.degrees import Degrees

COORDINATOR_CPUS = 0.1
GPU_RANK_CPUS = 0.1
CPU_RANK_CPUS = 1.0
MIN_CPU_RANK_CPUS = 0.25
SPARE_CPUS = 0.5
"""Left on a node for the ingress and Ray's own actors when ranks share its CPUs."""


def usable_nodes(cluster: Cluster, *, device: str) -> tuple[NodeType, ...]:
    """Node types that may hold ranks; equal ones are joined, so that the search does not grow with the cluster."""
    joined: dict[tuple[object, ...], NodeType] = {}
    for node in cluster.node_types:
        if device == "cuda" and not node.num_gpus:
            continue
        key = size_of(node)
        known = joined.get(key)
        joined[key] = _join(known, node) if known else node
    return tuple(joined.values())


def _join(one: NodeType, other: NodeType) -> NodeType:
    """Both as one type, which is said to have what both have."""
    return replace(
        one,
        count=one.count + other.count,
        type_resource=one.type_resource if one.type_resource == other.type_resource else None,
        type_label=one.type_label if one.type_label == other.type_label else None,
        memory_label=one.memory_label if one.memory_label == other.memory_label else None,
    )


def cpus_per_rank(degrees: Degrees, node: NodeType, context: PlanContext) -> float:
    """CPUs of a rank's bundle: as stated, else one on CPUs, or a smaller share where one node then holds the group."""
    if context.request.cpus_per_rank is not None:
        return context.request.cpus_per_rank
    if context.device == "cuda":
        return GPU_RANK_CPUS
    left = node.num_cpus - COORDINATOR_CPUS - SPARE_CPUS
    share = math.floor(100 * left / degrees.num_ranks) / 100
    return share if MIN_CPU_RANK_CPUS <= share < CPU_RANK_CPUS else CPU_RANK_CPUS


def ranks_per_node(degrees: Degrees, node: NodeType, context: PlanContext) -> int:
    """Ranks that one node of this type can hold, beside the coordinator."""
    by_cpu = int((node.num_cpus - COORDINATOR_CPUS) / cpus_per_rank(degrees, node, context) + 1e-9)
    if context.device == "cpu":
        return by_cpu
    return by_cpu if context.request.share_gpu else min(by_cpu, node.num_gpus)


def node_problem(degrees: Degrees, node: NodeType, context: PlanContext) -> str | None:
    """Why nodes of this type cannot hold the group; None if they can."""
    per_node = ranks_per_node(degrees, node, context)
    if per_node < 1:
        cpus = cpus_per_rank(degrees, node, context)
        return f"a rank needs {cpus:g} CPUs and the coordinator {COORDINATOR_CPUS:g}, the node has {node.num_cpus:g}"
    total = per_node if context.request.share_gpu else per_node * node.count
    if degrees.num_ranks > total:
        return f"{degrees.num_ranks} ranks are needed, {node.count} node(s) of this type hold {per_node} each"
    return None


def equivalence(degrees: Degrees, node: NodeType, context: PlanContext) -> tuple[object, ...]:
    """What a group can see of its nodes but for their memory: with that and the key equal, candidates are the same."""
    ranks_on_node = min(degrees.num_ranks, ranks_per_node(degrees, node, context))
    cpus = cpus_per_rank(degrees, node, context)
    return (ranks_on_node, cpus, node.gpu_type)
