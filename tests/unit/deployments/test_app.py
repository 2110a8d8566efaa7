"""What the builder binds, without a cluster."""

from pathlib import Path

import pytest

from deployments import app as builder
from deployments.errors import SettingsError
from deployments.settings import AppSettings
from tests.plans import make_wan_plan

MODELS = [{"checkpoint": "/models/a b", "num_replicas": 2}, {"checkpoint": "/models/c", "name": "org/c"}]
cluster_files = []
ELSEWHERE = {"database": "postgresql://u@h/d", "storage": "s3://bucket/results"}


@pytest.fixture
def asked(monkeypatch):
    """The checkpoints that the planner was asked about; no Serve runs."""
    checkpoints = []

    def ask(checkpoint, request, **options):
        checkpoints.append(checkpoint)
        cluster_files.append(options["cluster_file"])
        return make_wan_plan(Path(checkpoint))

    monkeypatch.setattr(builder, "ask_planner", ask)
    monkeypatch.setattr(builder, "running_http_host", lambda: None)
    return checkpoints


def build(**values):
    """The bound deployments, the ingress first."""
    ingress = builder.build_app(AppSettings.model_validate(values))._bound_deployment
    groups = [argument._bound_deployment for argument in ingress.init_args[2:]]
    return ingress, groups


def test_one_model_has_the_name_that_configs_override(asked):
    _, groups = build(checkpoint="/models/shapes")
    assert [group.name for group in groups] == ["Group"]
    assert asked == ["/models/shapes"]


def test_each_model_has_its_own_groups_with_names_that_serve_takes(asked):
    ingress, groups = build(models=MODELS)
    assert [group.name for group in groups] == ["Group-0-a_b", "Group-1-org_c"]
    assert [group.num_replicas for group in groups] == [2, 1]
    assert asked == ["/models/a b", "/models/c"] == [plan.checkpoint for plan in ingress.init_args[1]]


@pytest.mark.parametrize(
    ("said", "asked_with"), [({}, None), ({"cluster_file": "/etc/cluster.yaml"}, "/etc/cluster.yaml")]
)
def test_planner_is_told_of_nodes_that_may_come(asked, said, asked_with):
    cluster_files.clear()
    build(checkpoint="/models/shapes", **said)
    assert cluster_files == [asked_with]


@pytest.mark.parametrize(("rollover", "surge"), [("surge", 20), ("replace", 0)])
def test_new_groups_start_beside_the_old_ones_unless_told_otherwise(asked, rollover, surge):
    ingress, (group,) = build(checkpoint="/models/shapes", rollover=rollover)
    assert group._deployment_config.max_surge_percent == surge
    assert ingress._deployment_config.max_surge_percent == 100


@pytest.mark.parametrize(
    ("state", "is_on_head"),
    [
        ({}, True),
        ({"database": "postgresql://u@h/d"}, True),
        ({"storage": "s3://bucket/results"}, True),
        ({**ELSEWHERE, "storage": "file:///shared"}, True),
        (ELSEWHERE, False),
        ({**ELSEWHERE, "placement": "head"}, True),
        ({"placement": "anywhere"}, False),
    ],
)
def test_ingress_replicas_share_the_disk_that_jobs_are_on(asked, state, is_on_head):
    ingress, _ = build(checkpoint="/models/shapes", state=state)
    resources = ingress.ray_actor_options.get("resources") or {}
    assert ("node:__internal_head__" in resources) is is_on_head


def test_open_port_without_a_key_fails_the_deploy_before_anything_is_planned(asked, monkeypatch):
    monkeypatch.setattr(builder, "running_http_host", lambda: "0.0.0.0")
    with pytest.raises(SettingsError, match="0\\.0\\.0\\.0"):
        build(checkpoint="/models/shapes")
    assert asked == []
