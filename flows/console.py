"""What the person at the terminal sees: progress on stderr where it is a terminal, results on stdout, nothing else."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from ssl_backdoor.progress import Progress


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


class Listener:
    """Shows a bar with rate and time left for every running stage; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=RichConsole(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )

    def __call__(self, title: str, progress: Progress) -> None:
        """Show that ``title`` has come this far."""
        with self._lock:
            if title not in self._tasks:
                self._tasks[title] = self._bars.add_task(title, total=progress.total, unit=progress.unit, note="")
            self._bars.update(
                self._tasks[title],
                completed=progress.done,
                total=progress.total,
                note=progress.note,
                visible=progress.done < progress.total,
            )

    @contextmanager
    def shown(self) -> Iterator["Listener"]:
        """Show the bars while the block runs."""
        with self._bars:
            yield self


@contextmanager
def stdout_reserved() -> Iterator[None]:
    """Send all that is written to stdout inside the block, by whatever library or child, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
