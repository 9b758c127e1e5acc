"""Structured events: log records that carry the ids of their context; handlers decide on the format.

Records go to the logger ``ssl_backdoor``: silent in a plain process, shown by ``logging.basicConfig(level="INFO")``.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from ssl_backdoor.errors import replace_control_chars

LOG = logging.getLogger("ssl_backdoor")
_context: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


@contextmanager
def log_context(**ids: Any) -> Iterator[None]:
    """Add ``ids`` to every event inside the block: ``flow_run_id``, ``stage``, ``key``, ``title``, ..."""
    token = _context.set({**_context.get(), **ids})
    try:
        yield
    finally:
        _context.reset(token)


def context_ids() -> Mapping[str, Any]:
    """The ids of the current context."""
    return _context.get()


def log_event(event: str, message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log ``event`` (one word): ``message`` for people, on one printable line; ``fields`` for programs."""
    LOG.log(level, "%s", replace_control_chars(message), extra={"event": event, "fields": {**_context.get(), **fields}})


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Ids and fields of a record; of one that was logged without any, the ids of the current context."""
    fields: Mapping[str, Any] | None = getattr(record, "fields", None)
    return _context.get() if fields is None else fields
