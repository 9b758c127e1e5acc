"""One exception tree.

SslBackdoorError
├── UserError            the user can mend it: one sentence, exit code 2
│   ├── SpecError        a value in a spec or on the command line
│   ├── DataError        the images, captions or archives that were given
│   ├── StoreError       the artifact store: missing, unwritable, full, refused
│   │   └── StoreAwayError   it does not answer now, and may do so later
│   └── CheckpointError  a file that should hold weights and does not
└── TrainingError        the optimisation itself failed (a non-finite loss)
"""

import re

CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
"""User and password in an address, up to the last @ before its path: a password may hold one that is not quoted."""


class SslBackdoorError(Exception):
    """Root of every error this project raises on purpose."""


class UserError(SslBackdoorError):
    """Something the user can mend. The message says what was expected, what was found and what to do."""


class SpecError(UserError, ValueError):
    """A value in a spec is impossible or does not fit the others."""


class DataError(UserError):
    """The data that were given cannot be used."""


class StoreError(UserError):
    """The artifact store cannot be reached, read or written."""


class StoreAwayError(StoreError):
    """The artifact store does not answer, or is too busy to; the same may succeed later."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated, altered or not a checkpoint."""


class TrainingError(SslBackdoorError):
    """Training cannot go on; the message names the step."""


def sentence(error: BaseException) -> str:
    """One printable line on ``error``: the project's own words, or the first of a stranger's behind its type."""
    if isinstance(error, SslBackdoorError):
        return printed(str(error))
    origin = getattr(error, "cause", None)  # of what Ray brings back from a worker
    error = origin if isinstance(origin, BaseException) else error
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"unexpected {type(error).__name__}: {printed(first)[:300]}; the log of this run has the rest"


def printed(text: str) -> str:
    """``text`` on one line, without what a database or a terminal would choke on and without an address's password."""
    return CREDENTIALS.sub("", " ".join(visible(text).split()))


def visible(text: str) -> str:
    """``text``, line by line, with a space for every character that would steer a terminal instead of showing."""
    lines = text.splitlines()
    return "\n".join("".join(each if each.isprintable() else " " for each in line) for line in lines)
