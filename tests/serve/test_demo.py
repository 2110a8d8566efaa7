"""`make demo` does what it says and leaves nothing."""

import io

import av
import pytest
from PIL import Image

from tests.serve.processes import Command


@pytest.fixture
def demo(tmp_path):
    command = Command(["examples/demo.py", str(tmp_path)], tmp_path / "run")
    yield command
    command.kill_all()


def test_demo_shows_the_plan_and_makes_a_picture_and_a_video(demo, tmp_path):
    assert demo.wait() == 0, demo.stderr
    assert "WanPipeline" in demo.stdout
    assert "Try next" in demo.stdout
    assert Image.open(tmp_path / "demo.png").size == (64, 64)
    with av.open(io.BytesIO((tmp_path / "demo.mp4").read_bytes())) as container:
        assert len(list(container.decode(video=0))) == 9
    demo.check_nothing_left()


@pytest.mark.full
@pytest.mark.parametrize("moment", ["starting Serve", "starting group"])
def test_interrupt_during_the_demo_leaves_nothing(demo, moment):
    demo.wait_for_line(moment)
    demo.interrupt()
    assert demo.wait(timeout_s=40) == 130, demo.stderr
    demo.check_nothing_left()
