from pathlib import Path

import pytest

from tests.plans import make_wan_plan
from workers.process_group import lane_layout


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
