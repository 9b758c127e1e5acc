"""How what happens is shown: one stream of events, as lines for people or, with SSL_BACKDOOR_LOG=json, as JSON.

A flow shows its events on stderr and on Prefect's page. A Ray worker writes its own to its stderr, which is a file of
Ray's, and passes them on to the flow that waits for it.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ssl_backdoor.errors import CREDENTIALS, SpecError, visible
from ssl_backdoor.events import LOG, fields_of

_FORMAT = "SSL_BACKDOOR_LOG"
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY|AUTH_STRING")


def is_json() -> bool:
    """Whether SSL_BACKDOOR_LOG asks for JSON.

    Raises:
        SpecError: it asks for something else than "json" or "lines".
    """
    asked = os.environ.get(_FORMAT, "lines")
    if asked not in ("json", "lines"):
        raise SpecError(f"{_FORMAT} must be lines or json, found {asked!r}")
    return asked == "json"


def redacted(text: str) -> str:
    """``text`` without the values of this process's secret variables, and without passwords in addresses."""
    secrets = {value for name, value in os.environ.items() if len(value) >= 8 and _SECRET.search(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may begin another
        text = text.replace(value, "***")
    return CREDENTIALS.sub("***@", text)


class Line(logging.Formatter):
    """``12:00:03 train suspect, pair 3 (train/4f2a90c1b2d3): finished after 93.1 s``, times of this machine."""

    def __init__(self, has_time: bool = True) -> None:
        super().__init__("%(asctime)s " if has_time else "", "%H:%M:%S")
        self._has_time = has_time

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds; a traceback follows it."""
        fields = fields_of(record)
        time = f"{self.formatTime(record, self.datefmt)} " if self._has_time else ""
        level = f"{record.levelname} " if self._has_time and record.levelno >= logging.WARNING else ""
        place = f" ({fields['stage']}/{fields['key'][:12]})" if "key" in fields else ""
        title = f"{fields['title']}{place}: " if "title" in fields else ""
        line = f"{time}{level}{title}{' '.join(visible(redacted(record.getMessage())).splitlines())}"
        return f"{line}\n{redacted(self.formatException(record.exc_info))}" if record.exc_info else line


class JsonLine(logging.Formatter):
    """One JSON object: ``time`` (UTC), ``level``, ``event``, ids and fields of the event, ``message``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            **fields_of(record),
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            told["traceback"] = redacted(self.formatException(record.exc_info))
        return json.dumps(told, ensure_ascii=False, default=str)


def on_stderr() -> logging.Handler:
    """All events, in the form that is asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine() if is_json() else Line())
    return handler


def is_progress(record: logging.LogRecord) -> bool:
    """Whether ``record`` only says how far something is."""
    return getattr(record, "event", "") == "progress"


@contextmanager
def shown(*handlers: logging.Handler) -> Iterator[None]:
    """Show events by ``handlers`` and nowhere else while the block runs."""
    level, propagate = LOG.level, LOG.propagate
    for handler in handlers:
        LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.setLevel(level)
        LOG.propagate = propagate
        for handler in handlers:
            LOG.removeHandler(handler)


@contextmanager
def others_in_json() -> Iterator[None]:
    """What Prefect and other libraries log in the block comes as JSON too, with the ids of its place."""
    root = logging.getLogger()
    kept, root.handlers = root.handlers, [on_stderr()]
    try:
        yield
    finally:
        root.handlers = kept


class Relay(logging.Handler):
    """Gives ``post`` each record as plain data, for ``replay`` in another process."""

    def __init__(self, post: Callable[[dict[str, Any]], object]) -> None:
        super().__init__()
        self._post = post

    def emit(self, record: logging.LogRecord) -> None:
        """Post the record, with the time at which it was made."""
        told = {"created": record.created, "levelno": record.levelno, "levelname": record.levelname}
        event = getattr(record, "event", "message")
        self._post({**told, "msg": record.getMessage(), "event": event, "fields": dict(fields_of(record))})


def replay(record: Mapping[str, Any]) -> None:
    """Tell here what a ``Relay`` was told elsewhere."""
    if LOG.isEnabledFor(record["levelno"]):
        LOG.handle(logging.makeLogRecord({"name": LOG.name, **record}))
