import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tests.plans import make_wan_plan
from workers.process_group import LeaderDoor, join_process_group, lane_layout


@pytest.mark.parametrize(
    ("num_ranks", "cfg_degree", "sequence_degree", "fsdp_degree", "all_take_part"),
    [
        (2, 2, 1, 1, False),
        (2, 2, 1, 2, True),
        (4, 2, 2, 2, False),
        (4, 2, 2, 4, True),
        (4, 1, 2, 4, False),
        (6, 2, 3, 2, True),  # ranks 2 and 3 hold one copy together, and belong to different lanes
    ],
)
def test_every_lane_takes_part_where_shards_lie_across_lanes(
    num_ranks: int, cfg_degree: int, sequence_degree: int, fsdp_degree: int, all_take_part: bool
) -> None:
    plan = make_wan_plan(
        Path("unused"), num_ranks=num_ranks, cfg_degree=cfg_degree, sequence_degree=sequence_degree,
        fsdp_degree=fsdp_degree,
    )  # fmt: skip
    layout = lane_layout(plan)
    assert layout.all_take_part is all_take_part
    assert layout.lane_size == num_ranks // cfg_degree


@pytest.fixture
def joined_alone() -> Iterator[None]:
    """A process group of this process, made as a rank makes it, with five seconds for the rendezvous."""
    door = LeaderDoor("127.0.0.1", 1, timeout_s=5)
    environment = dict(os.environ)
    join_process_group(door.rendezvous, make_wan_plan(Path("unused")), world_rank=0, store=door.store, timeout_s=5)
    yield
    dist.destroy_process_group()
    door.wires.close()
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.usefixtures("joined_alone")
def test_no_collective_times_out_before_the_calls_own_deadline_ends_the_group() -> None:
    groups = [dist.group.WORLD, DeviceMesh("cpu", torch.arange(1), mesh_dim_names=("shard",)).get_group()]
    timeouts = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
    assert timeouts == [datetime.timedelta(days=1)] * 2
