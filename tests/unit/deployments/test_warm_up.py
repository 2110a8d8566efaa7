"""Which shapes a group runs before it serves, and what is counted afterwards."""

import pytest
from pydantic import ValidationError

from deployments.pipeline_call import build_arguments
from deployments.schemas import ImageRequest, VideoRequest
from deployments.seam_metrics import SeamMetrics
from deployments.settings import AppSettings, WarmUpShape
from deployments.warm_up import warm_up_requests
from planner.plan import ServingDefaults
from workers.calls import GroupDescription, SeamStats

VIDEO_DEFAULTS = ServingDefaults(width=64, height=64, num_frames=5)


def describe(*, makes_video: bool) -> GroupDescription:
    names = ("prompt", "width", "height", "num_inference_steps", *(("num_frames",) if makes_video else ()))
    return GroupDescription("AnyPipeline", names, makes_video, 16, {}, ())


def shapes_of(settings: dict, defaults: ServingDefaults, *, makes_video: bool) -> list[tuple[object, ...]]:
    shapes = AppSettings.model_validate({"checkpoint": "/models/any", **settings}).warm_up
    description = describe(makes_video=makes_video)
    requests = warm_up_requests(shapes, defaults, description)
    calls = [build_arguments(request, defaults, description) for request in requests]
    return [(call.get("width"), call.get("height"), call.get("num_frames")) for call in calls]


def test_without_shapes_the_checkpoints_defaults_are_run() -> None:
    assert shapes_of({}, VIDEO_DEFAULTS, makes_video=True) == [(64, 64, 1), (64, 64, 5)]
    assert shapes_of({}, ServingDefaults(width=32, height=48), makes_video=False) == [(32, 48, None)]


def test_stated_shapes_are_run_and_no_others() -> None:
    warm_up = [{"size": "96x64", "num_frames": 9}, {"size": "32x32", "num_frames": 1}, {"num_frames": 13}]
    expected = [(96, 64, 9), (32, 32, 1), (64, 64, 13)]
    assert shapes_of({"warm_up": warm_up}, VIDEO_DEFAULTS, makes_video=True) == expected


def test_pictures_and_videos_are_asked_for_as_clients_do() -> None:
    requests = warm_up_requests(
        (WarmUpShape(num_frames=1), WarmUpShape(num_frames=5)), VIDEO_DEFAULTS, describe(makes_video=True)
    )
    assert [type(request) for request in requests] == [ImageRequest, VideoRequest]


@pytest.mark.parametrize("shape", [{"size": "wide"}, {"num_frames": 0}, {"frames": 5}])
def test_a_shape_that_is_none_is_refused(shape: dict) -> None:
    with pytest.raises(ValidationError):
        AppSettings.model_validate({"checkpoint": "/models/any", "warm_up": [shape]})


class RecordingCounter:
    def __init__(self, name: str, counts: dict[str, float]) -> None:
        self._name, self._counts = name, counts

    def inc(self, value: float = 1.0) -> None:
        self._counts[self._name] = self._counts.get(self._name, 0) + value


def test_what_ran_serially_is_counted() -> None:
    counts: dict[str, float] = {}
    metrics = SeamMetrics(lambda name, _: RecordingCounter(name, counts))
    metrics.record(SeamStats())
    metrics.record(SeamStats(learnt_signatures=2))
    metrics.record(SeamStats(learnt_signatures=1, local_calls=3))
    assert counts == {"heliograph_seam_learnt_signatures": 3, "heliograph_seam_local_calls": 3}
