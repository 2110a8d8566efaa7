from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.settings import AppSettings, explain_validation
from planner.plan import Residency, ShardUnit


def explain(**values):
    with pytest.raises(ValidationError) as caught:
        AppSettings.model_validate({"checkpoint": "/models/shapes", **values})
    return explain_validation(caught.value)


def test_unknown_key_is_named_with_the_nearest_known_one():
    assert "'num_replica': did you mean 'num_replicas'?" in explain(num_replica=2)
    assert "'cfg_degre': did you mean 'cfg_degree'?" in explain(plan={"cfg_degre": 2})
    assert "'colour'" in explain(limits={"colour": 1})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"num_replicas": 0}, "num_replicas"),
        ({"request_timeout_s": float("nan")}, "request_timeout_s"),
        ({"plan": {"num_ranks": "many"}}, "plan.num_ranks"),
        ({"plan": {"mode": "fast"}}, "plan.mode"),
        ({"limits": {"max_steps": -1}}, "limits.max_steps"),
        ({"plan": {"residency": {"vae": "nowhere"}}}, "plan"),
    ],
)
def test_wrong_value_is_explained_by_its_key(values, key):
    assert explain(**values).startswith(f"{key}: ")


def test_residency_may_be_written_as_on_the_command_line():
    settings = AppSettings.model_validate({"checkpoint": "c", "plan": {"residency": {"transformer": "layerwise:12"}}})
    choice = settings.plan.residency["transformer"]
    assert (choice.residency, choice.num_resident_blocks) == (Residency.LAYERWISE, 12)
    settings = AppSettings.model_validate({"checkpoint": "c", "plan": {"residency": {"transformer": "sharded:parts"}}})
    assert settings.plan.residency["transformer"].shard_by is ShardUnit.PARTS


def test_served_name_is_the_folder_unless_given():
    assert AppSettings(checkpoint="/models/shapes").served_name == "shapes"
    assert AppSettings(checkpoint="/models/shapes", name="toy").served_name == "toy"


def test_relative_checkpoint_is_found_beside_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (Path(AppSettings(checkpoint="deployments").checkpoint_location) / "settings.py").is_file()
    (tmp_path / "deployments").mkdir()
    assert AppSettings(checkpoint="deployments").checkpoint_location == str(tmp_path / "deployments")


def test_checkpoint_s_url_is_left_as_it_is():
    for url in ("s3://bucket/wan", "hf://owner/wan@main", "https://host/models/wan"):
        assert AppSettings(checkpoint=url).checkpoint_location == url
    assert AppSettings(checkpoint="s3://bucket/wan").served_name == "wan"


def test_no_more_is_admitted_than_all_ingress_replicas_together_get_done_in_time():
    settings = AppSettings(checkpoint="c", request_timeout_s=300, num_ingress_replicas=3)
    assert settings.queue_ceiling_s == 100
    assert settings.model_copy(update={"max_queued_seconds": 1000.0}).queue_ceiling_s == 1000
