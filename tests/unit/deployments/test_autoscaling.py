"""How many groups the waiting work needs."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from benchmarks.autoscaling_simulation import KnownWork, simulate
from deployments import autoscaling
from deployments.app import _replicas
from deployments.autoscaling import COST_METRIC, Load, ScalingSettings, WaitingWorkPolicy, decide, needed_replicas
from deployments.settings import AppSettings
from tests.plans import make_wan_plan

FIELDS = {
    "min_replicas": 1, "max_replicas": 10, "target_gpu_seconds": 60.0,
    "up_delay_s": 10.0, "down_delay_s": 100.0, "to_zero_delay_s": 200.0,
}  # fmt: skip
SETTINGS = ScalingSettings(**FIELDS)
TO_ZERO = ScalingSettings(**{**FIELDS, "min_replicas": 0})


def load(*, waiting=0.0, busy=0, replicas=1, now=0.0):
    return Load(now=now, waiting_gpu_seconds=waiting, num_busy=busy, num_replicas=replicas)


def run(loads, settings=SETTINGS, *, replicas=1):
    """Replica counts over seconds under (waiting, busy) pairs."""
    history, counts = (), []
    for second, (waiting, busy) in enumerate(loads):
        now = load(waiting=waiting, busy=min(busy, replicas), replicas=replicas, now=float(second))
        replicas, history = decide(now, settings, history)
        counts.append(replicas)
    return counts


@pytest.mark.parametrize(
    ("waiting", "busy", "needed"),
    [(0.0, 0, 1), (0.0, 3, 3), (1.0, 1, 2), (60.0, 1, 2), (61.0, 1, 3), (1e9, 1, 10), (0.0, 99, 10)],
)
def test_need_is_the_groups_at_work_and_one_for_each_target_that_waits(waiting, busy, needed):
    assert needed_replicas(load(waiting=waiting, busy=busy), SETTINGS) == needed


def test_groups_are_started_when_they_were_needed_all_through_the_delay():
    counts = run([(170.0, 1)] * 12)
    assert counts[:10] == [1] * 10
    assert counts[11] == 4


def test_a_burst_shorter_than_the_delay_starts_nothing():
    assert set(run([(600.0, 1)] * 9 + [(0.0, 1)] * 20)) == {1}


def test_groups_end_down_to_the_most_that_was_needed_in_the_delay():
    counts = run([(0.0, 5)] * 2 + [(0.0, 3)] + [(0.0, 1)] * 200, replicas=8)
    assert counts[99] == 8
    assert counts[100] == 5  # 101 s ago 8 groups were there, five of them busy
    assert counts[102] == 3
    assert counts[103:] == [1] * 100


def test_busy_groups_are_not_ended_though_nothing_waits():
    assert set(run([(0.0, 6)] * 300, replicas=6)) == {6}


def test_last_group_ends_after_the_longer_delay_and_comes_back_at_once():
    counts = run([(0.0, 0)] * 250 + [(5.0, 0)], TO_ZERO)
    assert counts[199] == 1
    assert counts[200] == 0
    assert counts[250] == 1


def test_last_group_stays_where_it_must():
    assert run([(0.0, 0)] * 400)[-1] == 1


def test_history_is_bounded_however_often_the_policy_is_asked():
    history = ()
    for tick in range(5000):
        _, history = decide(load(now=tick / 10), TO_ZERO, history)
    assert len(history) < 220


def context(*, requests, replicas, costs=None, state=None, now=0.0):
    metrics = {COST_METRIC: costs} if costs else {}
    return SimpleNamespace(
        policy_state=state or {}, aggregated_metrics=metrics, total_num_requests=requests,
        current_num_replicas=replicas, target_num_replicas=replicas, current_time=now,
    )  # fmt: skip


def test_policy_weighs_waiting_requests_by_what_groups_report():
    policy = WaitingWorkPolicy(1.0, **{**FIELDS, "up_delay_s": 0.0})
    cheap, _ = policy(context(requests=11.0, replicas=1, costs={"a": 6.0}))
    dear, state = policy(context(requests=11.0, replicas=1, costs={"a": 30.0}))
    assert (cheap, dear) == (2, 6)
    again, _ = policy(context(requests=11.0, replicas=1, state={"cost": state["cost"]}))
    assert again == dear, "the cost outlives the groups that reported it"


def test_policy_uses_the_plans_prediction_before_any_report():
    policy = WaitingWorkPolicy(60.0, **{**FIELDS, "up_delay_s": 0.0})
    assert policy(context(requests=4.0, replicas=1, costs={"a": 0.0}))[0] == 4


def test_policy_travels_to_a_process_that_has_none_of_our_packages(tmp_path):
    """Serve's controller gets it pickled by value; it does not see an app's working_dir."""
    cloudpickle.register_pickle_by_value(autoscaling)
    (tmp_path / "policy").write_bytes(cloudpickle.dumps(WaitingWorkPolicy))
    cloudpickle.unregister_pickle_by_value(autoscaling)
    script = (
        "import pickle, sys; from types import SimpleNamespace; import ray.cloudpickle;"
        f"policy = pickle.load(open('policy', 'rb'))(1.0, **{FIELDS!r});"
        "print(policy(SimpleNamespace(policy_state={}, aggregated_metrics={}, total_num_requests=0.0,"
        "current_num_replicas=1, target_num_replicas=1, current_time=0.0))[0], 'deployments' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env={"PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "False"], done.stderr


def test_deployment_is_bound_with_the_policy(tmp_path):
    settings = AppSettings.model_validate({"checkpoint": "/x", "autoscaling": {"min_replicas": 0, "max_replicas": 3}})
    config = _replicas(settings, make_wan_plan(tmp_path, num_ranks=2, cfg_degree=2))["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (0, 3)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy(context(requests=0.0, replicas=1))[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_replicas": 2, "autoscaling": {"max_replicas": 3}}, "say min_replicas and max_replicas there"),
        ({"autoscaling": {"min_replicas": 4, "max_replicas": 3}}, "more than max_replicas"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AppSettings.model_validate({"checkpoint": "/x", **settings})


def test_simulation_serves_every_request_once_and_counts_the_time_of_groups():
    requests = [(float(second), 30.0) for second in range(100)]
    cluster = simulate(KnownWork(), iter(requests), num_groups=10)
    assert len(cluster.waits) == 100
    assert cluster.gpu_seconds > 100 * 30.0
    assert max(cluster.waits) < 10 * 30.0, "groups were added: ten of them would take 300 s"
