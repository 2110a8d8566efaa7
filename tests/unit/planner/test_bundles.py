"""Bundles hold all that a plan rests on, so that no lesser node gets the group; what no node has is named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags, cluster_from_ray_nodes, cluster_from_yaml
from planner.errors import InfeasiblePlanError
from planner.plan import Plan, PlanRequest
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

RANK = 1


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A denoiser of 10 GiB and a text encoder of 6 GiB; sparse files."""
    folder: Path = write_wan(tmp_path_factory.mktemp("big"), num_layers=40, width=8192, encoder_layers=24)
    return read_checkpoint(str(folder))


def node(name: str, gpu_type: str | None, gib: float, **more: Any) -> NodeType:
    return NodeType(name, 1, 32.0, 2, gpu_type, int(gib * GIB), 256 * GIB, **more)


def plan_for(checkpoint: Checkpoint, *nodes: NodeType, **request: Any) -> Plan:
    return plan_group(checkpoint, Cluster(nodes, "test"), PlanRequest(**{"num_ranks": 1, **request}))


def test_bundles_hold_the_host_memory_of_a_node(big: Checkpoint) -> None:
    residency = {"transformer": {"residency": "layerwise", "num_resident_blocks": 0}}
    request = PlanRequest.model_validate({"cfg_degree": 2, "residency": residency})
    for nodes in (1, 2):
        cluster = cluster_from_flags(gpus_per_node=2 // nodes, gpu_type="H100", num_nodes=nodes, host_memory_gib=128)
        plan = plan_group(big, cluster, request)
        coordinator, rank, other = (bundle["memory"] for bundle in plan.group.bundles)
        assert rank == other
        on_first_node = coordinator + rank * 2 / nodes
        assert plan.memory.host_peak_bytes <= on_first_node < plan.memory.host_peak_bytes + 2
        assert on_first_node > 10 * GIB


def test_one_gpu_type_needs_no_name(wan: Checkpoint) -> None:
    group = plan_for(wan, node("a", "H100", 80), node("b", "H100", 80, type_resource="accelerator_type:H100")).group
    assert set(group.bundles[RANK]) == {"CPU", "GPU", "memory"}
    assert group.node_labels == {}


def test_type_is_asked_for_by_the_resource_that_the_nodes_have(wan: Checkpoint) -> None:
    small = node("small", "L4", 24)
    named = plan_for(wan, small, node("big", "H100", 80, type_resource="accelerator_type:NVIDIA-H100")).group
    assert named.bundles[RANK]["accelerator_type:NVIDIA-H100"] == 0.001
    found_by_ray = plan_for(wan, small, node("big", "H100", 80)).group
    assert found_by_ray.bundles[RANK]["accelerator_type:H100"] == 0.001


def test_type_is_asked_for_by_its_label_where_only_that_is_stated(wan: Checkpoint) -> None:
    plan = plan_for(wan, node("small", "L4", 24), node("big", "h100", 80, type_label="h100"))
    assert not any(name.startswith("accelerator_type") for name in plan.group.bundles[RANK])
    assert plan.group.node_labels == {"ray.io/accelerator-type": "h100"}
    assert plan.label_selectors() == [{}, {"ray.io/accelerator-type": "h100"}]


def test_memory_of_one_type_is_told_apart_by_its_label(wan: Checkpoint) -> None:
    plan = plan_for(wan, node("a", "A100", 40, memory_label="40"), node("b", "A100", 80, memory_label="80"))
    assert plan.memory.gpu_capacity_bytes == (80 * GIB,)
    assert plan.group.node_labels == {"heliograph.io/gpu-memory-gib": "80"}


def test_smaller_gpus_are_planned_for_where_larger_ones_cannot_be_told_apart(wan: Checkpoint, big: Checkpoint) -> None:
    nodes = (node("a", "H100", 16, memory_label="16"), node("b", "H100", 80))
    plan = plan_for(wan, *nodes)
    assert plan.memory.gpu_capacity_bytes == (16 * GIB,)
    assert any("give them the label heliograph.io/gpu-memory-gib" in entry.reason for entry in plan.rejected)
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_for(big, *nodes, mode="speed")
    assert "Ray cannot tell its nodes (H100, 80.0 GiB) from those of a (H100, 16.0 GiB)" in caught.value.report_json


def test_nodes_of_an_unknown_type_beside_known_ones_are_not_planned_for(wan: Checkpoint) -> None:
    plan = plan_for(wan, node("known", "L4", 24), node("unknown", None, 80))
    assert plan.gpu_type == "L4"
    assert any("give them the label ray.io/accelerator-type" in entry.reason for entry in plan.rejected)


@pytest.mark.parametrize(
    ("request_", "lack", "way_out"),
    [
        (
            {"cpus_per_rank": 64},
            "a rank needs 64 CPUs and the coordinator 0.1, the node has 32",
            "drop cpus_per_rank=64.0",
        ),
        (
            {"num_ranks": 4, "cfg_degree": 2, "fsdp_degree": 4},
            "4 ranks are needed, 1 node(s) of this type hold 2 each",
            "drop num_ranks and cfg_degree and fsdp_degree",
        ),
    ],
)
def test_what_no_node_type_has_is_named(wan: Checkpoint, request_: dict[str, Any], lack: str, way_out: str) -> None:
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_for(wan, node("a", "H100", 80), **request_)
    assert lack in str(caught.value)
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("gpus_per_node", "nodes", "request_", "groups"),
    [
        (8, 2, {"cfg_degree": 2}, 8),
        (8, 2, {"num_ranks": 3, "cfg_degree": 1, "fsdp_degree": 3}, 4),
        (2, 3, {"cfg_degree": 2, "fsdp_degree": 4}, 1),
        (1, 4, {"cfg_degree": 2}, 2),
        (1, 1, {"cfg_degree": 2, "share_gpu": True}, 1),
    ],
)
def test_plan_says_how_many_groups_the_cluster_can_hold(
    wan: Checkpoint, gpus_per_node: int, nodes: int, request_: dict[str, Any], groups: int
) -> None:
    cluster = cluster_from_flags(gpus_per_node=gpus_per_node, gpu_type="H100", num_nodes=nodes)
    assert plan_group(wan, cluster, PlanRequest(**request_)).group.max_groups == groups


def test_groups_are_bounded_by_host_memory_and_by_cpus(big: Checkpoint) -> None:
    streamed = {"transformer": {"residency": "layerwise", "num_resident_blocks": 0}}
    request = PlanRequest.model_validate({"num_ranks": 1, "residency": streamed})
    plans = [
        plan_group(big, cluster_from_flags(gpus_per_node=8, gpu_type="H100", **has), request)  # type: ignore[arg-type]
        for has in ({"host_memory_gib": 64}, {"host_memory_gib": 640}, {"host_memory_gib": 640, "cpus_per_node": 0.5})
    ]
    assert [plan.group.max_groups for plan in plans] == [4, 8, 2]


def test_only_nodes_that_are_meant_count(wan: Checkpoint) -> None:
    nodes = (node("a", "A100", 40, memory_label="40"), node("b", "A100", 80, memory_label="80"), node("c", "L4", 24))
    assert plan_for(wan, *nodes).group.max_groups == 2


def test_group_spans_nodes_that_are_up_and_such_that_may_come(wan: Checkpoint) -> None:
    up = node("up", "H100", 80, type_resource="accelerator_type:H100", type_label="H100")
    plan = plan_for(wan, up, node("may come", "H100", 80), num_ranks=4, cfg_degree=1, fsdp_degree=4)
    assert (plan.group.strategy, plan.group.max_groups) == ("PACK", 1)
    beside_others = plan_for(wan, up, node("may come", "H100", 80), node("other", "L4", 24)).group
    assert beside_others.bundles[RANK]["accelerator_type:H100"] == 0.001
    assert beside_others.node_labels == {}


GPU_NODE = {"CPU": 16, "GPU": 1, "memory": 10**11, "accelerator_type:A100": 1}


def test_live_nodes_and_ray_up_files_are_read_alike(tmp_path: Path) -> None:
    labels = {"ray.io/accelerator-type": "A100", "heliograph.io/gpu-memory-gib": "80"}
    live = cluster_from_ray_nodes([{"Alive": True, "Resources": GPU_NODE, "Labels": labels}])
    file = tmp_path / "cluster.yaml"
    types = {"gpu": {"max_workers": 1, "resources": GPU_NODE, "labels": labels}}
    file.write_text(yaml.safe_dump({"available_node_types": types}))
    for (found,) in (live.node_types, cluster_from_yaml(file).node_types):
        assert (found.gpu_type, found.gpu_memory_bytes) == ("A100", 80 * GIB)
        assert (found.type_resource, found.type_label) == ("accelerator_type:A100", "A100")
        assert found.memory_label == "80"
