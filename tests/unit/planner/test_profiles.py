"""Profiles on disk and behind URLs: whole files, bounded in number and size, and harmless when foreign."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from planner import profiles
from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import cluster_from_flags
from planner.errors import ProfileError
from planner.measurements import Measurement, measurement_key
from planner.plan import Mode, PlanRequest
from planner.profiles import (
    PROFILES_VARIABLE,
    configured_folder,
    keep_measurement,
    key_hash,
    read_measurements,
)
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

H100 = cluster_from_flags(gpus_per_node=2, gpu_type="H100")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "profiles")
        return
    yield "memory://profiles"
    memory = fsspec.filesystem("memory")
    if memory.exists("/profiles"):
        memory.rm("/profiles", recursive=True)


def measured(checkpoint: Checkpoint, *, width: int = 832, peak: int = 10**9, at: float = 1.0) -> Measurement:
    key = measurement_key(plan_group(checkpoint, H100, PlanRequest(width=width, num_ranks=1)))
    assert key is not None
    return Measurement(key=key, gpu_peak_bytes=(peak,), step_samples_s=(0.25,), updated_at=at)


def test_what_is_kept_is_read_again(wan: Checkpoint, folder: str) -> None:
    assert read_measurements(folder, checkpoint_fingerprint=wan.fingerprint) == ()
    one, other = measured(wan), measured(wan, width=640)
    assert keep_measurement(folder, one) == one
    keep_measurement(folder, other)
    found = read_measurements(folder, checkpoint_fingerprint=wan.fingerprint)
    assert {m.key.shape.width: m for m in found} == {832: one, 640: other}
    assert read_measurements(folder, checkpoint_fingerprint="0" * 64) == ()


def test_second_report_of_a_configuration_is_merged(wan: Checkpoint, folder: str) -> None:
    keep_measurement(folder, measured(wan, peak=2 * 10**9))
    merged = keep_measurement(folder, measured(wan, peak=10**9, at=2.0))
    assert read_measurements(folder, checkpoint_fingerprint=wan.fingerprint) == (merged,)
    assert (merged.gpu_peak_bytes, merged.num_reports, merged.updated_at) == ((2 * 10**9,), 2, 2.0)
    assert merged.step_samples_s == (0.25, 0.25)


def test_number_of_profiles_is_bounded_and_the_oldest_goes(
    wan: Checkpoint, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MAX_PROFILES", 3)
    for i, at in enumerate([5.0, 1.0, 4.0, 6.0, 2.0]):
        keep_measurement(folder, measured(wan, width=640 + 16 * i, at=at))
    found = read_measurements(folder, checkpoint_fingerprint=wan.fingerprint)
    # 1.0 went for 6.0, then 4.0 for the newcomer: what is reported now counts as used, whatever its clock says.
    assert sorted(m.updated_at for m in found) == [2.0, 5.0, 6.0]


def test_foreign_files_are_left_out_with_a_warning(
    wan: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = keep_measurement(str(tmp_path), measured(wan))
    below = tmp_path / "v2" / wan.fingerprint
    document = json.loads((below / f"{key_hash(kept.key)}.json").read_text())
    (below / "a.json").write_text("{")
    (below / "b.json").write_text(json.dumps({**document, "schema_version": 3}))
    (below / "c.json").write_text(json.dumps({**document, "gpu_peak_bytes": [-5]}))
    (below / "d.json").write_text(" " * (profiles.MAX_PROFILE_BYTES + 1))
    (below / "e.json").mkdir()
    (below / "readme.txt").write_text("not a profile")
    with caplog.at_level(logging.WARNING):
        assert read_measurements(str(tmp_path), checkpoint_fingerprint=wan.fingerprint) == (kept,)
    assert sorted(name for name in "abcde" if f"{name}.json" in caplog.text) == list("abcde")


def test_profiles_of_version_1_are_not_used_and_said(
    wan: Checkpoint, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_measurement(folder, measured(wan))
    assert len(read_measurements(folder, checkpoint_fingerprint=wan.fingerprint)) == 1
    assert caplog.records == []
    old = json.loads(measured(wan).model_dump_json())
    del old["key"]["attention_backends"], old["key"]["compile"]
    old["schema_version"] = 1
    file_system, root = fsspec.core.url_to_fs(folder)
    file_system.makedirs(f"{root}/v1/{wan.fingerprint}", exist_ok=True)
    file_system.pipe_file(f"{root}/v1/{wan.fingerprint}/old.json", json.dumps(old).encode())
    with caplog.at_level(logging.WARNING):
        (kept,) = read_measurements(folder, checkpoint_fingerprint=wan.fingerprint)
    assert kept.key.compile == "blocks"
    assert "1 profiles of" in caplog.text
    assert "say neither attention kernels nor compilation and are not used" in caplog.text


def test_profile_of_another_checkpoint_in_the_folder_is_not_used(wan: Checkpoint, tmp_path: Path) -> None:
    other = measured(wan).key.model_copy(update={"checkpoint_fingerprint": "1" * 64})
    keep_measurement(str(tmp_path), measured(wan).model_copy(update={"key": other}))
    (tmp_path / "v2" / ("1" * 64)).rename(tmp_path / "v2" / wan.fingerprint)
    assert read_measurements(str(tmp_path), checkpoint_fingerprint=wan.fingerprint) == ()


def test_failed_write_leaves_the_old_profile_and_no_rubbish(
    wan: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep_measurement(str(tmp_path), measured(wan))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ProfileError, match="disk full"):
        keep_measurement(str(tmp_path), measured(wan, peak=9 * 10**9))
    monkeypatch.undo()
    assert read_measurements(str(tmp_path), checkpoint_fingerprint=wan.fingerprint) == (kept,)
    assert [path.name for path in (tmp_path / "v2" / wan.fingerprint).iterdir()] == [f"{key_hash(kept.key)}.json"]


def test_readers_beside_a_writer_see_whole_profiles(wan: Checkpoint, tmp_path: Path) -> None:
    keep_measurement(str(tmp_path), measured(wan))
    stop, found = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found.append(len(read_measurements(str(tmp_path), checkpoint_fingerprint=wan.fingerprint)))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        keep_measurement(str(tmp_path), measured(wan, peak=10**9 + i))
    stop.set()
    reader.join(timeout=60)
    assert found
    assert set(found) == {1}


def test_folder_that_cannot_be_reached_is_an_error(wan: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "v2").write_text("a file")
    with pytest.raises(ProfileError, match="cannot be written"):
        keep_measurement(str(tmp_path), measured(wan))
    with pytest.raises(ProfileError):
        read_measurements("no-such-protocol://x", checkpoint_fingerprint=wan.fingerprint)


def test_folder_is_the_stated_one_else_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROFILES_VARIABLE, raising=False)
    assert configured_folder() is None
    assert read_measurements(None, checkpoint_fingerprint="0" * 64) == ()
    monkeypatch.setenv(PROFILES_VARIABLE, "/profiles")
    assert configured_folder() == "/profiles"
    assert configured_folder("/stated") == "/stated"


def test_actor_keeps_what_a_group_reports_and_plans_with_it(
    wan: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = pytest.importorskip("planner.actor")
    monkeypatch.setattr(actor, "_live_cluster", lambda _: H100)
    monkeypatch.delenv(PROFILES_VARIABLE, raising=False)
    planner, folder = actor.PlannerActor(), str(tmp_path / "profiles")
    request = PlanRequest(num_ranks=1, mode=Mode.SPEED).model_dump_json()
    before = json.loads(planner.plan(wan.path, request, None, folder))
    assert before["corrections"] == []
    report = measured(wan, width=1024, peak=before["memory"]["gpu_peak_bytes"][0] + 2**30).model_dump_json()
    assert planner.report_measurement(report) is None
    assert json.loads(planner.report_measurement(report, folder))["num_reports"] == 1
    after = json.loads(planner.plan(wan.path, request, None, folder))
    assert after["memory"]["gpu_peak_bytes"][0] == before["memory"]["gpu_peak_bytes"][0] + 2**30
    assert [c["number"] for c in after["corrections"]] == ["gpu_peak_bytes", "step_s"]
