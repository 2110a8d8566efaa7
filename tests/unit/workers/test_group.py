from pathlib import Path

import pytest

from tests.plans import make_wan_plan
from workers.errors import GroupStartError
from workers.group import WorkerGroup


def test_a_plan_with_sequence_parallelism_is_refused_before_anything_starts() -> None:
    plan = make_wan_plan(Path("unused"), num_ranks=2, cfg_degree=1)
    plan = plan.model_copy(update={"group": plan.group.model_copy(update={"sequence_degree": 2})})
    with pytest.raises(GroupStartError, match="sequence_degree 2 cannot be carried out"):
        WorkerGroup.start(plan)
