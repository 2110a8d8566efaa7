"""What the planner actor plans for: nodes that are up, and those that an autoscaler may still start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from planner import actor

HEAD = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8 * 2**30}, "Labels": {}}
FILE = """
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4, memory: 8589934592}, max_workers: 0}
  gpu: {resources: {CPU: 16, GPU: 2, memory: 107374182400, "accelerator_type:H100": 1}, max_workers: 3}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setattr(ray, "nodes", lambda: [HEAD])
    monkeypatch.setattr(actor, "_BOOTSTRAP_FILE", tmp_path / "ray_bootstrap_config.yaml")

    def write_file(name: str) -> Path:
        (tmp_path / name).write_text(FILE)
        return tmp_path / name

    return write_file


def test_without_a_description_there_are_the_live_nodes_only(write: Callable[[str], Path]) -> None:
    assert not actor._live_cluster(None).has_gpus


def test_node_types_of_the_file_that_the_settings_name_may_come(write: Callable[[str], Path]) -> None:
    cluster = actor._live_cluster(str(write("cluster.yaml")))
    assert {(node.num_gpus, node.count) for node in cluster.node_types if node.num_gpus} == {(2, 3)}


def test_nodes_that_are_up_are_not_counted_as_such_that_may_come_too(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = {"CPU": 16.0, "GPU": 2.0, "memory": 107374182400.0, "accelerator_type:H100": 1.0}
    up = {"Alive": True, "Resources": resources, "Labels": {"ray.io/accelerator-type": "H100"}}
    for num_up in (1, 2, 3, 4):
        monkeypatch.setattr(ray, "nodes", lambda num_up=num_up: [HEAD] + [up] * num_up)
        cluster = actor._live_cluster(str(write("cluster.yaml")))
        assert sum(node.count for node in cluster.node_types if node.num_gpus) == max(3, num_up)


def test_what_ray_up_leaves_on_the_head_node_is_found(write: Callable[[str], Path]) -> None:
    write("ray_bootstrap_config.yaml")
    assert actor._live_cluster(None).has_gpus
