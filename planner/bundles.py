"""What a group asks of the cluster: a bundle for the coordinator, one for each rank, and the nodes that may hold them.

Whatever a plan rests on is in the bundles, so that Ray puts the group on no lesser node, and packs no more groups on
one than it can hold: CPUs, GPUs, host memory, and the type and memory of the GPUs where the cluster has several.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner.cluster import GIB, GPU_MEMORY_LABEL, TYPE_LABEL, Cluster, NodeType
from planner.context import PlanContext
from planner.evaluation import Candidate
from planner.memory import COORDINATOR_BYTES
from planner.nodes import COORDINATOR_CPUS, cpus_per_rank, ranks_per_node

TYPE_SHARE = 0.001
"""Of the one unit of `accelerator_type:X` that a node has, whatever the number of its GPUs."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a rank's bundle asks for, so that only nodes of one type fit among those of a cluster.

    Attributes:
        resource: Ray's resource for the GPU type; None if it is not needed.
        labels: labels that the node must have.
        problem: why the nodes cannot be told from lesser ones; None if they can.
    """

    resource: str | None
    labels: dict[str, str]
    problem: str | None = None


def smallest_of_each_type(nodes: Iterable[NodeType]) -> tuple[NodeType, ...]:
    """Of each GPU type the node with the least GPU memory: if a node is told from these, it is told from all."""
    smallest: dict[str | None, NodeType] = {}
    for node in nodes:
        known = smallest.get(node.gpu_type)
        if node.num_gpus and (known is None or node.gpu_memory_bytes < known.gpu_memory_bytes):
            smallest[node.gpu_type] = node
    return tuple(smallest.values())


def select_node(node: NodeType, others: Iterable[NodeType]) -> Selection:
    """How Ray is told which nodes are meant: those of `node`'s GPU type with as much GPU memory.

    Nodes without GPUs need not be told apart: the bundles ask for CPUs and host memory.

    Args:
        others: `smallest_of_each_type` of the cluster.
    """
    resource: str | None = None
    labels: dict[str, str] = {}
    for other in others if node.num_gpus else ():
        if other.gpu_type != node.gpu_type:
            if node.type_resource is None and node.type_label is not None:
                labels[TYPE_LABEL] = node.type_label
            elif node.gpu_type is not None:  # Ray finds out the type of a live node's GPUs by itself
                resource = node.type_resource or f"accelerator_type:{node.gpu_type}"
            else:
                return Selection(None, {}, _untold(node, other, TYPE_LABEL))
        elif other.gpu_memory_bytes < node.gpu_memory_bytes:
            if node.memory_label is None:
                return Selection(None, {}, _untold(node, other, GPU_MEMORY_LABEL))
            labels[GPU_MEMORY_LABEL] = node.memory_label
    return Selection(resource, labels)


def make_bundles(chosen: Candidate, context: PlanContext, selection: Selection) -> tuple[dict[str, float], ...]:
    """The coordinator's bundle, then one a rank; host memory is the predicted peak of the fullest node, shared out."""
    num_ranks = chosen.degrees.num_ranks
    on_node = min(num_ranks, ranks_per_node(chosen.degrees, chosen.node, context))
    rank = {
        "CPU": cpus_per_rank(chosen.degrees, chosen.node, context),
        "memory": float(-(-(chosen.moments.host_peak_bytes - COORDINATOR_BYTES) // on_node)),
    }
    if context.device == "cuda":
        rank["GPU"] = 1.0 / num_ranks if context.request.share_gpu else 1.0
        if selection.resource is not None:
            rank[selection.resource] = TYPE_SHARE
    coordinator = {"CPU": COORDINATOR_CPUS, "memory": float(COORDINATOR_BYTES)}
    return (coordinator, *(dict(rank) for _ in range(num_ranks)))


def count_groups(
    bundles: Sequence[Mapping[str, float]], chosen: Candidate, selection: Selection, cluster: Cluster
) -> int:
    """Groups with these bundles that the cluster's nodes can hold, if nothing else runs there.

    Nodes that an autoscaler may still start count too.
    """
    ranks = bundles[1:]
    whole = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ranks[0]}
    held = 0
    for node in cluster.node_types:
        if not _is_meant(node, chosen.node, selection):
            continue
        needed = ranks[0] if chosen.spans_nodes else whole
        held += node.count * _times_in(node, needed)
    return held // len(ranks) if chosen.spans_nodes else held


def _is_meant(node: NodeType, chosen: NodeType, selection: Selection) -> bool:
    """Whether Ray may take `node` for what was planned for `chosen`."""
    labels = {TYPE_LABEL: node.type_label, GPU_MEMORY_LABEL: node.memory_label}
    if not chosen.num_gpus:
        return True
    return node.gpu_type == chosen.gpu_type and all(labels[name] == value for name, value in selection.labels.items())


def _times_in(node: NodeType, needed: Mapping[str, float]) -> int:
    has = {"CPU": node.num_cpus, "GPU": float(node.num_gpus), "memory": float(node.host_memory_bytes)}
    return min(int(have / needed[name] + 1e-9) for name, have in has.items() if needed.get(name))


def _untold(node: NodeType, other: NodeType, label: str) -> str:
    return (
        f"Ray cannot tell its nodes ({_gpu_text(node)}) from those of {other.name} ({_gpu_text(other)}): "
        f"give them the label {label}"
    )


def _gpu_text(node: NodeType) -> str:
    return f"{node.gpu_type or 'GPUs of an unknown type'}, {node.gpu_memory_bytes / GIB:.1f} GiB"
