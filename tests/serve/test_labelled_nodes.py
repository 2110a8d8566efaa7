"""Nodes whose GPUs differ in memory only: by their labels Ray puts a group where it was planned for."""

import contextlib
import json
from pathlib import Path

import pytest

from planner.cluster import GPU_MEMORY_LABEL, TYPE_LABEL
from tests.serve.head_and_nodes import HOST, WITH_TOKEN, HeadAndNodes
from tests.serve.processes import Command
from tests.tools.skeletons import write_skeleton

pytestmark = pytest.mark.full


def test_group_is_put_on_the_node_whose_gpu_was_planned_for(short_folder: Path) -> None:
    checkpoint = write_skeleton(short_folder, "FLUX.1-dev")
    with contextlib.closing(HeadAndNodes(short_folder)) as nodes:
        nodes.start_head()
        for gib in ("24", "80", "40"):
            nodes.start_node(num_cpus=2, num_gpus=1, labels={TYPE_LABEL: "H100", GPU_MEMORY_LABEL: gib})
        arguments = ["-m", "tests.serve.place_group", f"{HOST}:{nodes.port}", str(checkpoint), "speed"]
        command = Command(arguments, short_folder / "place", environment=WITH_TOKEN)
        assert command.wait(timeout_s=120) == 0, command.stderr
    found = json.loads(command.stdout.splitlines()[-1])
    assert found["selectors"][1][GPU_MEMORY_LABEL] == "80"
    assert found["labels"][1][GPU_MEMORY_LABEL] == "80"
