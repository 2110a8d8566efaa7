"""The repository's `cluster.yaml`: Ray accepts it, it is closed to the outside, and the planner plans for it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.checkpoint import read_checkpoint
from planner.cluster import GIB, cluster_from_yaml
from planner.hardware import find_gpu
from planner.plan import PlanRequest
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

FILE = Path(__file__).parents[3] / "cluster.yaml"


@pytest.fixture
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def test_ray_up_accepts_the_file_offline(document: dict[str, Any]) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(document)
    util.validate_config(prepared)
    assert prepared["provider"]["type"] == "aws"


def test_only_ssh_is_open_to_the_outside(document: dict[str, Any]) -> None:
    open_ports = {(p["FromPort"], p["ToPort"]) for p in document["provider"]["security_group"]["IpPermissions"]}
    assert open_ports == {(22, 22)}
    start = " ".join([*document["head_start_ray_commands"], *document["worker_start_ray_commands"]])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start


def test_every_node_starts_with_token_authentication(document: dict[str, Any]) -> None:
    for commands in (document["head_start_ray_commands"], document["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert starts
        assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "~/.ray/auth_token" in document["file_mounts"]


def test_nodes_install_the_pinned_set(document: dict[str, Any]) -> None:
    assert any("-c ~/heliograph/constraints.txt" in command for command in document["setup_commands"])
    assert (FILE.parent / "constraints.txt").is_file()


def test_gpu_memory_labels_agree_with_the_table() -> None:
    for node in cluster_from_yaml(FILE).node_types:
        if node.num_gpus:
            gpu = find_gpu(node.gpu_type or "")
            assert gpu is not None
            assert node.gpu_memory_bytes / GIB == pytest.approx(gpu.memory_bytes / GIB, abs=0.15)


def test_the_planner_plans_for_it(tmp_path: Path) -> None:
    plan = plan_group(read_checkpoint(str(write_wan(tmp_path))), cluster_from_yaml(FILE), PlanRequest())
    assert (plan.device, plan.group.cfg_degree) == ("cuda", 2)
    # Several GPU types: the bundles say which one was planned for.
    assert any(name.startswith("accelerator_type:") for name in plan.group.bundles[1])
