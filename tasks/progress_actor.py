"""Progress and events on their way from Ray's workers to the flow that waits for them."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from logging import WARNING
from typing import Any

from ssl_backdoor.events import context_ids, log_context
from ssl_backdoor.progress import Progress
from tasks.logs import RelayHandler, attach_handlers, stderr_handler

FLUSH_TIMEOUT_S = 3.0
"""How long a worker, and the flow, wait at their end for events that are still on their way."""


class ProgressActor:
    """A Ray actor: latest progress of every running stage, and the events since the last read."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}
        self._events: list[dict[str, Any]] = []
        self._started_s: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()

    def start_stage(self, title: str) -> None:
        """A worker starts ``title``, perhaps not for the first time."""
        self._started_s[title] = time.monotonic()

    def elapsed_s(self, title: str) -> float:
        """Time since ``title`` was started; 0 if it was not."""
        return time.monotonic() - self._started_s.get(title, time.monotonic())

    def set_progress(self, title: str, progress: Progress) -> None:
        """Set the progress of ``title``. An actor that was restarted counts its time from here."""
        self._started_s.setdefault(title, time.monotonic())
        self._latest[title] = progress

    def add_event(self, event: dict[str, Any]) -> None:
        """Add an event as a ``RelayHandler`` sends it. That a stage starts again becomes a warning."""
        if event["event"] == "begins":
            self._attempts[key := event["fields"]["key"]] += 1
            if (attempt := self._attempts[key]) > 1:
                text = f"{event['msg']}, attempt {attempt}"
                fields = {**event["fields"], "attempt": attempt}
                event = {**event, "levelno": WARNING, "levelname": "WARNING", "msg": text, "fields": fields}
        self._events.append(event)

    def drain(self) -> tuple[dict[str, Progress], list[dict[str, Any]]]:
        """Progress by title, and the events since the last read."""
        events, self._events = self._events, []
        return dict(self._latest), events


class WorkerReporter:
    """Given to a worker: reports its stage's progress and events to the actor."""

    def __init__(self, actor: Any, title: str) -> None:
        self._actor = actor
        self._title = title
        self._ids = dict(context_ids())  # of the flow that asks
        self._last: Any = None

    def __call__(self, progress: Progress) -> None:
        """Report the stage's progress."""
        self._actor.set_progress.remote(self._title, progress)

    @contextmanager
    def relay_events(self) -> Iterator[None]:
        """In the worker: send events of the block to the flow, and to stderr, which is a log file of Ray's."""
        self._actor.start_stage.remote(self._title)
        with log_context(**self._ids), attach_handlers(stderr_handler(), RelayHandler(self._send_event)):
            try:
                yield
            finally:
                if self._last is not None:  # ray.wait releases this worker's CPU slot while blocked
                    wait([self._last.future()], timeout=FLUSH_TIMEOUT_S)

    def _send_event(self, event: dict[str, Any]) -> None:
        self._last = self._actor.add_event.remote(event)
