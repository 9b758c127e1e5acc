"""From Ray's workers to the flow that waits for them: how far a stage is, and what happens there."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from logging import WARNING
from typing import Any

from ssl_backdoor.events import about, ids
from ssl_backdoor.progress import Progress
from tasks.logs import Relay, on_stderr, shown

LAST_WORDS_S = 3.0
"""How long an end waits for what is still on its way."""


class Board:
    """An actor: latest progress of every running stage, and what has happened since somebody read."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}
        self._events: list[dict[str, Any]] = []
        self._begun_s: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()

    def begin(self, title: str) -> None:
        """A worker begins with ``title``, or begins it anew."""
        self._begun_s[title] = time.monotonic()

    def seconds(self, title: str) -> float:
        """How long ``title`` is worked at; 0 where it has not begun."""
        return time.monotonic() - self._begun_s.get(title, time.monotonic())

    def post(self, title: str, progress: Progress) -> None:
        """``title`` has come this far. A board that is new, as the last one was killed, counts its time from here."""
        self._begun_s.setdefault(title, time.monotonic())
        self._latest[title] = progress

    def tell(self, event: dict[str, Any]) -> None:
        """Something happened; as a ``Relay`` has it. That a stage begins once more is worth a warning."""
        if event["event"] == "begins":
            self._attempts[key := event["fields"]["key"]] += 1
            if (attempt := self._attempts[key]) > 1:
                text = f"{event['msg']}, attempt {attempt}"
                fields = {**event["fields"], "attempt": attempt}
                event = {**event, "levelno": WARNING, "levelname": "WARNING", "msg": text, "fields": fields}
        self._events.append(event)

    def read(self) -> tuple[dict[str, Progress], list[dict[str, Any]]]:
        """By title; each event once."""
        events, self._events = self._events, []
        return dict(self._latest), events


class Wire:
    """What a worker is given to be heard by: the listener of its stage's progress."""

    def __init__(self, board: Any, title: str) -> None:
        self._board = board
        self._title = title
        self._ids = dict(ids())  # of the flow that asks
        self._last: Any = None

    def __call__(self, progress: Progress) -> None:
        """The stage has come this far."""
        self._board.post.remote(self._title, progress)

    @contextmanager
    def open(self) -> Iterator[None]:
        """In the worker: what happens in the block is told to the flow, and to stderr, which is a file of Ray's."""
        self._board.begin.remote(self._title)
        with about(**self._ids), shown(on_stderr(), Relay(self._tell)):
            try:
                yield
            finally:
                if self._last is not None:  # ray.wait would lend this worker's CPU to another meanwhile
                    wait([self._last.future()], timeout=LAST_WORDS_S)

    def _tell(self, event: dict[str, Any]) -> None:
        self._last = self._board.tell.remote(event)
