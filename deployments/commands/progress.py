"""What a person sees while a command works; always on standard error."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from workers.calls import Progress as CallProgress


class ProgressDisplay:
    """One bar: what is being done, and the denoising steps as they happen. On no terminal, one line a stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._last_text = ""

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Shows what is being done now."""
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal and text != self._last_text:
            self._console.print(text, highlight=False)
        self._last_text = text

    def on_step(self, event: CallProgress) -> None:
        """Shows an event of a running call."""
        self._progress.update(self._task, completed=event.step, total=event.num_steps)
        self.say(event.stage)
