"""Clusters from flags, files, live nodes and this machine."""

from pathlib import Path

import pytest

from planner.cluster import (
    GIB,
    cluster_from_flags,
    cluster_from_ray_nodes,
    cluster_from_yaml,
    cluster_of_this_machine,
    resolve_cluster,
)
from planner.errors import ClusterError

YAML = """
head_node_type: head
available_node_types:
  head: {resources: {CPU: 8, memory: 34359738368}, node_config: {}}
  gpu:
    max_workers: 3
    resources: {CPU: 96, GPU: 8, memory: 1000000000000, "accelerator_type:H100": 1}
    node_config: {}
  odd:
    max_workers: 2
    resources: {CPU: 4, GPU: 1, memory: 64000000000}
    labels: {heliograph.io/gpu-memory-gib: "24"}
    node_config: {}
"""


def test_gpu_type_gives_memory() -> None:
    (node,) = cluster_from_flags(gpus_per_node=2, gpu_type="H100", num_nodes=3).node_types
    assert (node.num_gpus, node.count, node.gpu_type) == (2, 3, "H100")
    assert 79 * GIB < node.gpu_memory_bytes < 80 * GIB


def test_stated_gpu_memory_wins() -> None:
    (node,) = cluster_from_flags(gpus_per_node=1, gpu_type="H100", gpu_memory_gib=40).node_types
    assert node.gpu_memory_bytes == 40 * GIB


@pytest.mark.parametrize(
    "flags",
    [
        {"gpus_per_node": 1},
        {"gpus_per_node": 1, "gpu_type": "Voodoo2"},
        {"gpus_per_node": -1},
        {"gpus_per_node": 0, "num_nodes": 0},
        {"gpus_per_node": 1, "gpu_memory_gib": 0},
    ],
)
def test_impossible_flags(flags: dict[str, object]) -> None:
    with pytest.raises(ClusterError):
        cluster_from_flags(**flags)  # type: ignore[arg-type]


def test_ray_up_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(YAML)
    head, gpu, odd = cluster_from_yaml(file).node_types
    assert (head.name, head.count, head.num_gpus, head.host_memory_bytes) == ("head", 1, 0, 32 * GIB)
    assert (gpu.count, gpu.num_gpus, gpu.gpu_type) == (3, 8, "H100")
    assert odd.gpu_memory_bytes == 24 * GIB


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: [",
        "[]",
        "available_node_types: {}",
        "available_node_types: {a: 3}",
        "available_node_types: {a: {max_workers: 1, resources: {CPU: x, memory: 1}}}",
        "available_node_types: {a: {max_workers: 1, resources: {CPU: 1}}}",
        "available_node_types: {a: {max_workers: 0, resources: {CPU: 1, memory: 1}}}",
        "available_node_types: {a: {max_workers: 1, resources: {CPU: 1, GPU: 1, memory: 1}}}",
    ],
)
def test_unreadable_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ClusterError):
        cluster_from_yaml(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no such file"):
        cluster_from_yaml(tmp_path / "none.yaml")


def test_live_nodes_of_one_shape_are_joined_and_dead_ones_left_out() -> None:
    gpu = {
        "Alive": True,
        "Resources": {"CPU": 16.0, "GPU": 1.0, "memory": 1e11, "accelerator_type:A100": 1.0, "node:10.0.0.1": 1.0},
    }
    cluster = cluster_from_ray_nodes(
        [gpu, gpu, {**gpu, "Alive": False}, {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8e9}}]
    )
    assert sorted((n.count, n.num_gpus) for n in cluster.node_types) == [(1, 0), (2, 1)]


def test_no_live_node() -> None:
    with pytest.raises(ClusterError):
        cluster_from_ray_nodes([])


def test_this_machine_has_cpus_and_memory() -> None:
    (node,) = cluster_of_this_machine().node_types
    assert node.num_cpus >= 1
    assert node.host_memory_bytes > 2**28


def test_sources_are_asked_in_order(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(YAML)
    live = [{"Alive": True, "Resources": {"CPU": 4.0, "memory": 8e9}}]
    assert resolve_cluster(gpus_per_node=1, gpu_type="L4", ray_nodes=live, default_file=file).source == "flags"
    assert resolve_cluster(ray_nodes=live, cluster_file=file).source == "cluster.yaml"
    assert resolve_cluster(ray_nodes=live, default_file=file).source == "live Ray nodes"
    assert resolve_cluster(default_file=file).source == "cluster.yaml"
    assert resolve_cluster(default_file=tmp_path / "none").source == "this machine"
