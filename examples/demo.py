"""`make demo`: a picture over HTTP and a video by Python handle, through the whole path, on this machine."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deployments.answers import CompletedEvent
from deployments.commands.foreground import ServeConfig, num_cpus_for
from deployments.commands.progress import ProgressDisplay
from deployments.local_ray import local_ray
from deployments.local_serve import find_port, run_app
from deployments.schemas import VideoRequest

CONFIG = Path(__file__).parent / "shapes.yaml"
PICTURE_PROMPT = "a red circle on a white background"
VIDEO_PROMPT = "a red circle moving right on a white background"
SEED = 1

console = Console()


def main(folder: Path) -> int:
    """Starts the app, makes a picture and a video in `folder`, stops everything; 130 after Ctrl-C."""
    config = ServeConfig.read(CONFIG, host="127.0.0.1", port=0)
    port = find_port(config.host, config.port)
    try:
        with local_ray(num_cpus=num_cpus_for(config.settings)) as logs:
            with ProgressDisplay() as display:
                handle = run_app(config.settings, host=config.host, port=port, logs=logs, report=display.say)
            show_plan(handle)
            make_picture(f"http://{config.host}:{port}/v1", folder / "demo.png")
            make_video(handle, folder / "demo.mp4")
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started is stopped")
        return 130
    say_what_next()
    return 0


def show_plan(handle: Any) -> None:
    """Prints what the planner decided before anything started."""
    from planner.report import render_plan

    console.print(render_plan(handle.plan.remote().result(timeout_s=30)))


def make_picture(base_url: str, path: Path) -> None:
    """Asks over HTTP, as any OpenAI client does; the bar moves with the denoising steps."""
    import base64

    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    events: Any = client.images.generate(model="shapes", prompt=PICTURE_PROMPT, stream=True, extra_body={"seed": SEED})
    with new_bar() as bar:
        task = bar.add_task(PICTURE_PROMPT, total=None)
        for event in events:
            if event.type == "image_generation.progress":
                bar.update(task, completed=event.step, total=event.num_steps)
            elif event.type == "image_generation.completed":
                path.write_bytes(base64.b64decode(event.b64_json))
    console.print(f"wrote {path} (over HTTP)")


def make_video(handle: Any, path: Path) -> None:
    """Asks by Python handle, as a program on the cluster does."""
    events = handle.options(stream=True).stream.remote(VideoRequest(prompt=VIDEO_PROMPT, seed=SEED))
    with new_bar() as bar:
        task = bar.add_task(VIDEO_PROMPT, total=None)
        for event in events:
            if isinstance(event, CompletedEvent):
                path.write_bytes(event.content)
            else:
                bar.update(task, completed=event.step, total=event.num_steps)
    console.print(f"wrote {path} (by Python handle)")


def new_bar() -> Progress:
    """A progress bar for one request."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def say_what_next() -> None:
    """Where to go from here."""
    console.print(
        "\nTry next:\n"
        "  make serve                                   the same service, until Ctrl-C\n"
        "  .venv/bin/heliograph plan checkpoints/shapes --gpus 2 --gpu-type H100\n"
        "  .venv/bin/heliograph generate checkpoints/shapes --prompt 'a blue square' --output square.png",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
