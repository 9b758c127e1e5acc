"""What happens, as log records that carry the ids of what they are about; whoever listens decides how they look.

Records go to the logger ``ssl_backdoor``: silent in a plain process, shown by ``logging.basicConfig(level="INFO")``.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

LOG = logging.getLogger("ssl_backdoor")
_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """What is told inside the block is about ``ids``: ``flow_run_id``, ``stage``, ``key``, ``title``, ..."""
    token = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def ids() -> Mapping[str, Any]:
    """What is told here is about these."""
    return _about.get()


def tell(event: str, message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Say that ``event`` (one word) happened: ``message`` for people, ``fields`` for programs."""
    LOG.log(level, "%s", message, extra={"event": event, "fields": {**_about.get(), **fields}})


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Ids and fields of a record; of one that was logged plainly, what its place is about."""
    told: Mapping[str, Any] | None = getattr(record, "fields", None)
    return _about.get() if told is None else told
