"""Terminal output: progress on stderr, results on stdout, nothing else."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from ssl_backdoor.events import context_ids, log_context, log_event
from ssl_backdoor.progress import Progress
from tasks import logs

if TYPE_CHECKING:
    from tasks.ray_fit import Listener

_LINE_EVERY_S = 30.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


class ProgressBars:
    """A bar with rate and time left for every running stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self.rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=RichConsole(stderr=True),
            transient=True,
        )

    def __call__(self, title: str, progress: Progress) -> None:
        """Show the progress of ``title``."""
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


class ProgressLog:
    """For logs: every half minute an event for each stage that has moved, with rate and time left."""

    def __init__(self, every_s: float = _LINE_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._reported_s = clock()
        self._started: dict[str, tuple[float, Progress]] = {}
        self._latest: dict[str, tuple[Progress, Mapping[str, Any]]] = {}

    def __call__(self, title: str, progress: Progress) -> None:
        """Record the progress of ``title``, and log it when it is time."""
        with self._lock:
            now = self._clock()
            _, begun = self._started.setdefault(title, (now, progress))
            if progress.unit != begun.unit or progress.done < begun.done:  # another part of the stage, or restarted
                self._started[title] = (now, progress)
            self._latest[title] = (progress, context_ids())
            if now - self._reported_s < self._every_s:
                return
            self._reported_s = now
            for name, (one, context) in self._latest.items():
                if one.done < one.total:
                    self._log_progress(name, one, now, context)
            self._latest.clear()

    def _log_progress(self, title: str, progress: Progress, now: float, context: Mapping[str, Any]) -> None:
        began_s, begun = self._started[title]
        done, left = progress.done - begun.done, progress.total - progress.done
        text = f"{progress.done:,} of {progress.total:,} {progress.unit}"
        fields: dict[str, Any] = {"done": progress.done, "total": progress.total, "unit": progress.unit}
        if done and now > began_s:
            rate = done / (now - began_s)
            fields |= {"per_second": round(rate, 3), "left_s": round(left / rate)}
            text += f", {rate:,.0f} {progress.unit}/s" if rate >= 1 else ""
            text += f", {timedelta(seconds=fields['left_s'])} left"
        text += f", {progress.note}" if progress.note else ""
        log_event("progress", text, **{**context, "title": title, **fields})


@contextmanager
def show_progress() -> Iterator["Listener"]:
    """Show progress on stderr while the block runs: bars at a terminal, else a line now and then.

    With SSL_BACKDOOR_LOG=json all events, one JSON object a line.
    """
    is_json = logs.is_json()
    display = ProgressBars() if sys.stderr.isatty() and not is_json else ProgressLog()
    with display.rich if isinstance(display, ProgressBars) else nullcontext():
        handler = logs.stderr_handler()  # made here: the bars stand below what is written while they are shown
        if not is_json:
            # The command itself prints a failure at its end: do not print it twice.
            handler.addFilter(_Shown())
        with logs.attach_handlers(handler):
            yield display


class _Shown:
    """What a shell shows: progress, warnings, and how the data were understood, once."""

    def __init__(self) -> None:
        self._listed: set[str] = set()

    def __call__(self, record: logging.LogRecord) -> bool:
        if getattr(record, "event", "") == "listed":
            is_new = record.getMessage() not in self._listed
            self._listed.add(record.getMessage())
            return is_new
        return logs.is_progress(record) or record.levelno == logging.WARNING


@contextmanager
def log_flow_run(flow_run_id: UUID) -> Iterator["Listener"]:
    """Log what happens in a flow run to stderr and to Prefect's page while the block runs."""
    from tasks import prefect_page  # Prefect takes a second to import

    lines, page = ProgressLog(), prefect_page.StageProgress(flow_run_id)

    def both(title: str, progress: Progress) -> None:
        lines(title, progress)
        page(title, progress)

    others = logs.root_logger_as_json() if logs.is_json() else nullcontext()
    with (
        log_context(flow_run_id=str(flow_run_id)),
        logs.attach_handlers(logs.stderr_handler(), prefect_page.RunLog(flow_run_id)),
        others,
    ):
        yield both


@contextmanager
def reserve_stdout() -> Iterator[None]:
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
