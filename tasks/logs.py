"""How events are logged: one stream, as lines for people or, with SSL_BACKDOOR_LOG=json, as JSON.

A flow logs its events to stderr and to Prefect's page. A Ray worker logs to its stderr, which is a file of Ray's, and
relays its events to the flow that waits for it.
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

from ssl_backdoor.errors import CREDENTIALS, SpecError, replace_control_chars
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


def redact(text: str) -> str:
    """``text`` without the values of this process's secret variables, and without passwords in addresses."""
    secrets = {value for name, value in os.environ.items() if len(value) >= 8 and _SECRET.search(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may begin another
        text = text.replace(value, "***")
    return CREDENTIALS.sub("***@", text)


class LineFormatter(logging.Formatter):
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
        line = f"{time}{level}{title}{replace_control_chars(redact(record.getMessage()))}"
        if not record.exc_info:
            return line
        trace = redact(self.formatException(record.exc_info)).split("\n")
        return "\n".join([line, *(f"  {replace_control_chars(one)}" for one in trace)])


class JsonFormatter(logging.Formatter):
    """One JSON object: ``time`` (UTC), ``level``, ``event``, ids and fields of the event, ``message``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            **fields_of(record),
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            entry["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(entry, default=str)  # ASCII: no control character of any kind reaches a terminal


def stderr_handler() -> logging.Handler:
    """A handler that writes to stderr, in the format of SSL_BACKDOOR_LOG."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json() else LineFormatter())
    return handler


def is_progress(record: logging.LogRecord) -> bool:
    """Whether ``record`` only says how far something is."""
    return getattr(record, "event", "") == "progress"


@contextmanager
def attach_handlers(*handlers: logging.Handler) -> Iterator[None]:
    """Send events to ``handlers`` and nowhere else while the block runs."""
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
def root_logger_as_json() -> Iterator[None]:
    """Log what Prefect and other libraries say in the block as JSON too, with the ids of the context."""
    root = logging.getLogger()
    kept, root.handlers = root.handlers, [stderr_handler()]
    try:
        yield
    finally:
        root.handlers = kept


class RelayHandler(logging.Handler):
    """Gives ``post`` each record as plain data, for ``replay`` in another process."""

    def __init__(self, post: Callable[[dict[str, Any]], object]) -> None:
        super().__init__()
        self._post = post

    def emit(self, record: logging.LogRecord) -> None:
        """Post the record, with the time at which it was made."""
        base = {"created": record.created, "levelno": record.levelno, "levelname": record.levelname}
        event = getattr(record, "event", "message")
        self._post({**base, "msg": record.getMessage(), "event": event, "fields": dict(fields_of(record))})


def replay(record: Mapping[str, Any]) -> None:
    """Log here what a ``RelayHandler`` sent from another process."""
    if LOG.isEnabledFor(record["levelno"]):
        LOG.handle(logging.makeLogRecord({"name": LOG.name, **record}))
