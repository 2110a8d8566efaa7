"""The app builder: `import_path: deployments.app:build_app`.

No `from __future__ import annotations` here: Serve reads the builder's annotation to validate its arguments.
"""

import re
import time
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deployments.autoscaling import WaitingWorkPolicy
from deployments.exposure import check_exposure, running_http_host
from deployments.group import GroupDeployment
from deployments.ingress import Ingress
from deployments.settings import AppSettings, ModelSettings
from planner.actor import ask_planner
from planner.errors import PlannerError
from planner.plan import Plan

# Measured: with Serve's default back-off small groups reach a fifth to a third of the throughput at saturation.
_ROUTER = {"initial_backoff_s": 0.005, "max_backoff_s": 0.02}
_INGRESS_CPUS = 0.1
# Where the files of jobs are. A head node may be told to have no CPUs for anybody: none is asked for.
_ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
_STOP_MARGIN_S = 10.0
_NUM_PLANNER_ATTEMPTS = 5
_PLANNER_PAUSE_S = 0.5
# What a request costs on a GPU of unknown speed, until the first group has reported.
_UNKNOWN_REQUEST_S = 10.0
# What the policy sees is a mean over the look-back time of what is reported each interval. Ray 2.60 defines environment
# variables for the interval and does not read them; the field that it calls deprecated is what counts.
_METRICS_INTERVAL_S = 2.0
_LOOK_BACK_S = 10.0
# Groups that may be there beside those wanted while new ones replace old ones; rounded up, so at least one. It is also
# the share that Serve stops at a time.
_SURGE_PERCENT = 20
# A group's check stays open for longer than this (`held_check.py`): the next one follows at once.
_HEALTH_CHECK_PERIOD_S = 1.0
_HEALTH_CHECK_TIMEOUT_S = 15.0


def build_app(settings: AppSettings) -> Application:
    """Plans, then binds the deployments with the plans' bundles. No GPU is touched before every plan stands.

    Serve runs it up to four times a deploy: it starts nothing but the planner actor, which is stateless.

    Raises:
        SettingsError: Serve listens where strangers reach it, and there is no key.
        PlannerError: a checkpoint cannot be used, or no plan fits; with the numbers.
    """
    host = running_http_host()
    if host is not None:
        check_exposure(settings, host)
    plans = [_ask_planner(model, settings) for model in settings.served_models]
    groups = [_bind_group(settings, model, plan) for model, plan in zip(settings.served_models, plans, strict=True)]
    return _bind_ingress(settings, plans, groups)


def _ask_planner(model: ModelSettings, settings: AppSettings) -> Plan:
    """The planner's answer. An actor that nobody holds any more may be found by name while it goes: asked again."""
    for attempt in range(1, _NUM_PLANNER_ATTEMPTS + 1):
        try:
            return ask_planner(
                model.checkpoint_location, model.plan, cluster_file=settings.cluster_file or None,
                profiles=model.profiles, timeout_s=settings.plan_timeout_s,
            )  # fmt: skip
        except PlannerError as error:
            if not isinstance(error.__cause__, RayActorError) or attempt == _NUM_PLANNER_ATTEMPTS:
                raise
            time.sleep(_PLANNER_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _bind_group(settings: AppSettings, model: ModelSettings, plan: Plan) -> Any:
    coordinator, *_ = plan.group.bundles
    deployment = serve.deployment(GroupDeployment).options(
        name=_group_name(settings, model),
        **_replicas(model, plan),
        ray_actor_options={"num_cpus": coordinator.get("CPU", 0)},
        placement_group_bundles=[dict(bundle) for bundle in plan.group.bundles],
        placement_group_bundle_label_selector=plan.label_selectors(),
        placement_group_strategy=plan.group.strategy,
        max_ongoing_requests=model.max_ongoing_requests,
        max_surge_percent=_SURGE_PERCENT if model.rollover == "surge" else 0,
        request_router_config=_ROUTER,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.request_timeout_s + _STOP_MARGIN_S,
    )
    return deployment.bind(model, plan)


def _replicas(model: ModelSettings, plan: Plan) -> dict[str, Any]:
    """A fixed number of groups, or Serve's configuration to have our policy say it."""
    if model.autoscaling is None:
        return {"num_replicas": model.num_replicas}
    scaling = model.autoscaling.model_dump()
    cost = (plan.predicted.request_s or _UNKNOWN_REQUEST_S) * plan.group.num_ranks
    policy = AutoscalingPolicy(
        policy_function=WaitingWorkPolicy, policy_kwargs={"default_gpu_seconds": cost, **scaling}
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling["min_replicas"],
            max_replicas=scaling["max_replicas"],
            metrics_interval_s=_METRICS_INTERVAL_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=0.0,  # the policy has delays of its own
            downscale_delay_s=0.0,
            policy=policy,
        )
    }


def _group_name(settings: AppSettings, model: ModelSettings) -> str:
    """`Group`; with several models each has its place and name in it, as far as Serve takes its letters."""
    if not settings.models:
        return "Group"
    letters = re.sub(r"[^A-Za-z0-9_.-]", "_", model.served_name)
    return f"Group-{settings.models.index(model)}-{letters}"


def _bind_ingress(settings: AppSettings, plans: list[Plan], groups: list[Any]) -> Any:
    deployment = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=settings.num_ingress_replicas,
        ray_actor_options=_ON_HEAD if settings.state.is_on_head else {"num_cpus": _INGRESS_CPUS},
        # Admission is the service's work, with an honest Retry-After; Serve's own ceiling only must not come first.
        max_ongoing_requests=4 * settings.max_queued_requests * len(plans) + 100,
        max_surge_percent=100,
        request_router_config=_ROUTER,
        graceful_shutdown_timeout_s=settings.request_timeout_s + _STOP_MARGIN_S,
    )
    return deployment.bind(settings, plans, *groups)
