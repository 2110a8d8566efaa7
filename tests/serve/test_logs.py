"""What the logs of a running app say, and what they never say."""

from pathlib import Path

import ray

SECRET = "a quite unmistakable zeppelin"


def log_folder():
    return Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"


def all_logs():
    return {path: path.read_text(errors="replace") for path in log_folder().rglob("*") if path.is_file()}


def test_prompts_are_in_no_log(app, http):
    good = {"prompt": SECRET, "seed": 1, "num_inference_steps": 1}
    for body in (good, {**good, "stream": True}, {**good, "size": "63x64"}, {**good, "num_inference_steps": 10**6}):
        http.post("/v1/images/generations", json=body)
    logs = all_logs()
    assert any("denoise" in text for text in logs.values()), "the requests' own lines are there"
    assert [str(path) for path, text in logs.items() if "zeppelin" in text] == []


def test_each_component_has_a_line_with_bytes_and_seconds(app):
    text = "\n".join(all_logs().values())
    for component in ("transformer", "text_encoder", "vae"):
        assert f"{component} in place" in text
    assert "MiB in" in text
