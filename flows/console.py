"""What the person at the terminal sees: progress on stderr, results on stdout, nothing else."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from ssl_backdoor.progress import Progress

if TYPE_CHECKING:
    from tasks.ray_fit import Listener

_LINE_EVERY_S = 30.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


class Bars:
    """A bar with rate and time left for every running stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self.rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=RichConsole(stderr=True),
            transient=True,
        )

    def __call__(self, title: str, progress: Progress) -> None:
        """Show that ``title`` has come this far."""
        with self._lock:
            if title not in self._tasks:
                self._tasks[title] = self.rich.add_task(title, total=progress.total, unit=progress.unit, note="")
            self.rich.update(
                self._tasks[title],
                completed=progress.done,
                total=progress.total,
                note=progress.note,
                visible=progress.done < progress.total,
            )


class Lines:
    """For logs: every half minute one line for each stage that has moved, with rate and time left."""

    def __init__(
        self, out: TextIO, every_s: float = _LINE_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._told_s = clock()
        self._begun: dict[str, tuple[float, int]] = {}
        self._latest: dict[str, Progress] = {}

    def __call__(self, title: str, progress: Progress) -> None:
        """Note that ``title`` has come this far, and tell when it is time."""
        with self._lock:
            now = self._clock()
            self._begun.setdefault(title, (now, progress.done))
            self._latest[title] = progress
            if now - self._told_s < self._every_s:
                return
            self._told_s = now
            for name, one in self._latest.items():
                if one.done < one.total:
                    print(self._line(name, one, now), file=self._out, flush=True)
            self._latest.clear()

    def _line(self, title: str, progress: Progress, now: float) -> str:
        began_s, before = self._begun[title]
        done = progress.done - before
        text = f"{time.strftime('%H:%M:%S')} {title}: {progress.done:,} of {progress.total:,} {progress.unit}"
        if done and now > began_s:
            rate = done / (now - began_s)
            left = timedelta(seconds=round((progress.total - progress.done) / rate))
            text += f", {rate:,.0f} {progress.unit}/s, {left} left" if rate >= 1 else f", {left} left"
        return f"{text}, {progress.note}" if progress.note else text


@contextmanager
def progress_shown() -> Iterator["Listener"]:
    """Show progress on stderr while the block runs: bars at a terminal, else a line now and then."""
    display = Bars() if sys.stderr.isatty() else Lines(sys.stderr)
    shown: AbstractContextManager[object] = display.rich if isinstance(display, Bars) else nullcontext()
    with shown:
        yield display


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
