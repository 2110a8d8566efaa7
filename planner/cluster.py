"""The cluster that is planned for: node types with their CPUs, GPUs and memory, from wherever they can be known."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.errors import ClusterError
from planner.hardware import find_gpu

GIB = 2**30
TYPE_LABEL = "ray.io/accelerator-type"
GPU_MEMORY_LABEL = "heliograph.io/gpu-memory-gib"


@dataclass(frozen=True, slots=True)
class NodeType:
    """Nodes of one shape.

    Attributes:
        name: for messages.
        count: how many there are or may be.
        num_cpus: logical CPUs that Ray may give out.
        num_gpus: GPUs of a node.
        gpu_type: e.g. `H100`; None without GPUs or where it is not known.
        gpu_memory_bytes: memory of one GPU; 0 without GPUs.
        host_memory_bytes: memory of a node.
        type_resource: Ray's resource for the GPU type, `accelerator_type:H100`, if the nodes are said to have it.
        type_label: their label `ray.io/accelerator-type`.
        memory_label: their label `heliograph.io/gpu-memory-gib`.
    """

    name: str
    count: int
    num_cpus: float
    num_gpus: int
    gpu_type: str | None
    gpu_memory_bytes: int
    host_memory_bytes: int
    type_resource: str | None = None
    type_label: str | None = None
    memory_label: str | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Node types, in the order in which they were described, and where that was read."""

    node_types: tuple[NodeType, ...]
    source: str

    @property
    def has_gpus(self) -> bool:
        """True if some node has a GPU."""
        return any(node.num_gpus for node in self.node_types)


def cluster_from_flags(
    *,
    gpus_per_node: int,
    gpu_type: str | None = None,
    gpu_memory_gib: float | None = None,
    num_nodes: int = 1,
    host_memory_gib: float | None = None,
    cpus_per_node: float | None = None,
) -> Cluster:
    """A cluster as the command line states it.

    Raises:
        ClusterError: a GPU whose memory is neither stated nor known.
    """
    if gpus_per_node < 0 or num_nodes < 1:
        raise ClusterError(
            f"{num_nodes} nodes of {gpus_per_node} GPUs is no cluster: at least 1 node, and no fewer than 0 GPUs"
        )
    if (gpu_memory_gib is not None and gpu_memory_gib <= 0) or (host_memory_gib is not None and host_memory_gib <= 0):
        raise ClusterError("memory must be more than 0 GiB")
    gpu_bytes = 0
    if gpus_per_node:
        known = find_gpu(gpu_type) if gpu_type else None
        if gpu_memory_gib is not None:
            gpu_bytes = int(gpu_memory_gib * GIB)
        elif known is not None:
            gpu_bytes = known.memory_bytes
        elif gpu_type is None:
            raise ClusterError("GPUs without a type or memory: give --gpu-type H100, or --gpu-memory-gib 80")
        else:
            raise ClusterError(f"the memory of a GPU of type {gpu_type!r} is not known: give --gpu-memory-gib")
    # Without a figure: two bytes of host memory a byte of GPU memory, as cloud GPU nodes have at least.
    host_bytes = (
        int(host_memory_gib * GIB) if host_memory_gib is not None else max(64 * GIB, 2 * gpus_per_node * gpu_bytes)
    )
    cpus = cpus_per_node if cpus_per_node is not None else max(8.0, 8.0 * gpus_per_node)
    return Cluster((NodeType("flags", num_nodes, cpus, gpus_per_node, gpu_type, gpu_bytes, host_bytes),), "flags")


def cluster_of_this_machine() -> Cluster:
    """This machine: its GPUs by nvidia-smi (torch is not loaded), CPUs and memory within the cgroup's limits."""
    gpus = _ask_nvidia_smi()
    name, memory = gpus[0] if gpus else (None, 0)
    node = NodeType("this machine", 1, _usable_cpus(), len(gpus), name, memory, _usable_memory())
    return Cluster((node,), "this machine")


def cluster_from_yaml(path: str | Path) -> Cluster:
    """The node types of a `ray up` file (`available_node_types`), each with its `max_workers` (the head counts one).

    Memory is read from the resources; a GPU's type from `accelerator_type:X` or the label `ray.io/accelerator-type`.

    Raises:
        ClusterError: the file is missing, not YAML, or describes no node.
    """
    import yaml

    file = Path(path)
    try:
        document = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ClusterError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"{file} is not readable YAML: {str(error)[:200]}") from error
    types = document.get("available_node_types") if isinstance(document, dict) else None
    if not isinstance(types, dict) or not types:
        raise ClusterError(f"{file} has no available_node_types: it is not a file for `ray up`")
    head = document.get("head_node_type")
    nodes = [_node_of_yaml(str(name), entry, is_head=name == head, file=file) for name, entry in types.items()]
    present = tuple(node for node in nodes if node.count > 0)
    if not present:
        raise ClusterError(f"{file} allows no node: every max_workers is 0")
    return Cluster(present, str(file.name))


def cluster_from_ray_nodes(nodes: Iterable[Mapping[str, Any]]) -> Cluster:
    """The live nodes of a Ray cluster; `nodes` is what `ray.nodes()` returns. Equal nodes become one node type.

    Raises:
        ClusterError: no node is alive.
    """
    counts: dict[_Shape, int] = {}
    for node in nodes:
        if not node.get("Alive", node.get("alive", True)):
            continue
        resources = node.get("Resources", {})
        labels = node.get("Labels", {})
        shape = _shape_of_resources(resources, labels, where="the live cluster")
        counts[shape] = counts.get(shape, 0) + 1
    if not counts:
        raise ClusterError("no node of the Ray cluster is alive")
    types = tuple(
        NodeType(f"live node type {i}", count, *shape)
        for i, (shape, count) in enumerate(sorted(counts.items(), key=str))
    )
    return Cluster(types, "live Ray nodes")


def resolve_cluster(
    *,
    gpus_per_node: int | None = None,
    gpu_type: str | None = None,
    gpu_memory_gib: float | None = None,
    num_nodes: int | None = None,
    host_memory_gib: float | None = None,
    ray_nodes: Sequence[Mapping[str, Any]] | None = None,
    cluster_file: str | Path | None = None,
    default_file: str | Path | None = "cluster.yaml",
) -> Cluster:
    """Chooses the description: flags, the file asked for, live nodes, `cluster.yaml` here, this machine, in this order.

    Args:
        ray_nodes: what `ray.nodes()` returned; None if no cluster runs.
        cluster_file: a `ray up` file that was asked for.
        default_file: a `ray up` file that is used if it exists.

    Raises:
        ClusterError: the description chosen cannot be read.
    """
    flags = (gpus_per_node, gpu_type, gpu_memory_gib, num_nodes, host_memory_gib)
    if any(flag is not None for flag in flags):
        wants_gpu = gpu_type is not None or gpu_memory_gib is not None
        return cluster_from_flags(
            gpus_per_node=gpus_per_node if gpus_per_node is not None else int(wants_gpu),
            gpu_type=gpu_type,
            gpu_memory_gib=gpu_memory_gib,
            num_nodes=num_nodes if num_nodes is not None else 1,
            host_memory_gib=host_memory_gib,
        )
    if cluster_file is not None:
        return cluster_from_yaml(cluster_file)
    if ray_nodes is not None:
        return cluster_from_ray_nodes(ray_nodes)
    if default_file is not None and Path(default_file).is_file():
        return cluster_from_yaml(default_file)
    return cluster_of_this_machine()


def cluster_to_json(cluster: Cluster) -> str:
    """Canonical JSON of a cluster, for fingerprints."""
    return json.dumps([[getattr(n, name) for name in n.__slots__] for n in cluster.node_types])


def _node_of_yaml(name: str, entry: Any, *, is_head: bool, file: Path) -> NodeType:
    if not isinstance(entry, dict):
        raise ClusterError(f"{file}: node type {name} is not an object")
    resources = entry.get("resources") or {}
    labels = entry.get("labels") or {}
    workers = entry.get("max_workers", 0 if is_head else 1)
    if not isinstance(workers, int) or not isinstance(resources, dict) or not isinstance(labels, dict):
        raise ClusterError(
            f"{file}: node type {name} needs a number as max_workers and objects as resources and labels"
        )
    count = workers + (1 if is_head else 0)
    return NodeType(name, count, *_shape_of_resources(resources, labels, where=f"{file}: node type {name}"))


_Shape = tuple[float, int, str | None, int, int, str | None, str | None, str | None]
"""The fields of a `NodeType` from `num_cpus` on."""


def _shape_of_resources(resources: Mapping[str, Any], labels: Mapping[str, Any], *, where: str) -> _Shape:
    num_gpus = int(_number(resources.get("GPU", 0), where=where))
    type_resource = next((str(key) for key in resources if str(key).startswith("accelerator_type:")), None)
    type_label = labels.get(TYPE_LABEL)
    gpu_type = type_label or (type_resource.removeprefix("accelerator_type:") if type_resource else None)
    memory = int(_number(resources.get("memory", 0), where=where))
    gpu_bytes = 0
    if num_gpus:
        stated = labels.get(GPU_MEMORY_LABEL)
        known = find_gpu(gpu_type) if gpu_type else None
        if stated is not None:
            gpu_bytes = int(_number(stated, where=where) * GIB)
        elif known is not None:
            gpu_bytes = known.memory_bytes
        else:
            raise ClusterError(
                f"{where}: the memory of GPU type {gpu_type!r} is not known; add the label {GPU_MEMORY_LABEL}"
            )
    if not memory:
        raise ClusterError(f"{where} states no memory: add `memory: BYTES` to its resources")
    num_cpus = _number(resources.get("CPU", 0), where=where)
    if not num_gpus:
        return num_cpus, 0, None, 0, memory, None, None, None
    memory_label = str(stated) if stated is not None else None
    return num_cpus, num_gpus, gpu_type, gpu_bytes, memory, type_resource, type_label, memory_label


def _number(value: Any, *, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ClusterError(f"{where}: {value!r:.80} is not a number") from error
    if not 0 <= number < 2**63:
        raise ClusterError(f"{where}: {value!r:.80} is out of range")
    return number


def _ask_nvidia_smi() -> list[tuple[str, int]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus: list[tuple[str, int]] = []
    for line in done.stdout.strip().splitlines():
        name, _, mebibytes = line.rpartition(",")
        known = find_gpu(name.strip())
        if mebibytes.strip().isdigit():
            gpus.append((known.name if known else name.strip(), int(mebibytes) * 2**20))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        gpus
        if visible is None
        else gpus[: len([part for part in visible.split(",") if part.strip() not in {"", "-1"}])]
    )


def _usable_cpus() -> float:
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _read_text("/sys/fs/cgroup/cpu.max")
    if quota is not None and (parts := quota.split())[0] != "max":
        return max(1.0, min(count, float(int(parts[0]) // int(parts[1]))))
    v1_quota, v1_period = (
        _read_text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
        _read_text("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    )
    if v1_quota and v1_period and int(v1_quota) > 0:
        return max(1.0, min(count, float(int(v1_quota) // int(v1_period))))
    return count


def _usable_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _read_text(file)
        if limit is not None and limit.isdigit():
            total = min(total, int(limit))
    return total


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def merge_clusters(live: Cluster, possible: Cluster) -> Cluster:
    """The nodes that are up, and those that an autoscaler may still start: nodes of a type that are up count once."""
    up: dict[tuple[object, ...], int] = {}
    for node in live.node_types:
        up[size_of(node)] = up.get(size_of(node), 0) + node.count
    more: list[NodeType] = []
    for node in possible.node_types:
        is_up = min(node.count, up.get(size_of(node), 0))
        if is_up:
            up[size_of(node)] -= is_up
        if node.count > is_up:
            more.append(replace(node, count=node.count - is_up))
    return Cluster((*live.node_types, *more), f"{live.source} and {possible.source}")


def size_of(node: NodeType) -> tuple[object, ...]:
    """What makes nodes equal to a group: a live one may have more labels than its description says."""
    return node.num_cpus, node.num_gpus, node.gpu_type, node.gpu_memory_bytes, node.host_memory_bytes
