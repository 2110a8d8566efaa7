"""What is said of apps and of groups that start."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.stages import LoadedShare, Stage, describe_app
from planner.plan import Residency
from tests.plans import make_wan_plan
from workers.calls import ComponentLoaded


def deployment(message="", **states):
    return SimpleNamespace(replica_states=states, message=message, status="UPDATING")


def app(status="DEPLOYING", message="", **deployments):
    return SimpleNamespace(status=status, message=message, deployments=deployments)


def test_app_without_deployments_is_being_planned():
    assert describe_app("wan", app(), []) == ["wan: planning"]


def test_failed_deploy_says_why():
    lines = describe_app("wan", app(status="DEPLOY_FAILED", message="no plan fits\nneeds 91 GiB"), [])
    assert lines == ["wan: DEPLOY_FAILED", "  no plan fits", "  needs 91 GiB"]


def test_each_group_is_where_it_says_and_one_that_says_nothing_waits_for_nodes():
    groups = deployment(message="resources are missing", RUNNING=1, STARTING=3, STOPPING=1)
    stages = [Stage("wan", "Group", "a", "loading, 43 %"), Stage("wan", "Group", "b", "warming up, shape 1 of 2"),
              Stage("other", "Group", "c", "starting ranks")]  # fmt: skip
    assert describe_app("wan", app(Group=groups), stages) == [
        "wan: DEPLOYING",
        "  Group: 1 ready; 1 loading, 43 %; 1 warming up, shape 1 of 2; 1 waiting for nodes; 1 stopping",
        "    resources are missing",
    ]


def test_ingress_replicas_need_no_nodes_of_their_own():
    lines = describe_app("wan", app(Ingress=deployment(STARTING=2)), [])
    assert lines == ["wan: DEPLOYING", "  Ingress: 2 starting"]


def test_app_that_runs_is_ready_also_without_groups():
    assert describe_app("wan", app(status="RUNNING", Group=deployment()), []) == ["wan: ready", "  Group: none"]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_share_counts_bytes_over_all_ranks(num_ranks):
    plan = make_wan_plan(Path("/models/wan"), num_ranks=num_ranks)
    share, seen = LoadedShare(plan), []
    for component in plan.components:
        for rank in component.ranks:
            event = ComponentLoaded(rank, component.name, bytes_read=1, seconds=0.1, residency=Residency.RESIDENT)
            seen.append(share.add(event))
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert len(seen) > num_ranks
