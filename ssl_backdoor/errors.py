"""One exception tree.

SslBackdoorError
├── UserError            the user can fix it: one sentence, exit code 2
│   ├── SpecError        a value in a spec or on the command line
│   ├── DataError        the images, captions or archives that were given
│   │   └── SourceAwayError  their server does not answer now, and may do so later
│   ├── StoreError       the artifact store: missing, unwritable, full, refused
│   │   └── StoreAwayError   it does not answer now, and may do so later
│   └── CheckpointError  a file that should hold weights and does not
└── TrainingError        the optimisation itself failed (a non-finite loss)
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
"""User and password in an address, up to the last @ before its path: a password may hold one that is not quoted."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = {
    errno.ENOSPC: "disk full; free some space or choose another place",
    errno.EDQUOT: "disk full (quota); free some space or choose another place",
    errno.EFBIG: "a file grew too large for this place or for this user's limit (ulimit -f); choose another place",
    errno.EACCES: "not writable or readable for this user; choose another place or fix its permissions",
    errno.EPERM: "not writable or readable for this user; choose another place or fix its permissions",
    errno.EROFS: "not writable (a read-only file system); choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.EEXIST: "a file stands where a folder is needed; choose another place",
}


class SslBackdoorError(Exception):
    """Root of every error this project raises on purpose.

    Its text is one printable line without passwords in addresses, wherever it is shown: it may name any file or class.
    """

    def __str__(self) -> str:
        """The message."""
        return CREDENTIALS.sub("", replace_control_chars(super().__str__()))


class UserError(SslBackdoorError):
    """A mistake that the user can fix. The message says what was expected, what was found and what to do."""


class SpecError(UserError, ValueError):
    """A value in a spec is impossible or does not fit the others."""


class DataError(UserError):
    """The data that were given cannot be used."""


class SourceAwayError(DataError):
    """The server of the data does not answer, or is too busy to; the same may succeed later."""


class StoreError(UserError):
    """The artifact store cannot be reached, read or written."""


class StoreAwayError(StoreError):
    """The artifact store does not answer, or is too busy to; the same may succeed later."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated, altered or not a checkpoint."""


class TrainingError(SslBackdoorError):
    """Training cannot continue; the message names the step."""


@contextmanager
def translate_os_errors(place: str, *, only_full: bool = False) -> Iterator[None]:
    """Turn an OSError inside the block into a StoreError about ``place``, with one sentence of advice.

    With ``only_full`` only one that says that the disk is full: where others may come from elsewhere.
    """
    try:
        yield
    except OSError as error:
        if only_full and error.errno not in _FULL:
            raise
        reason = _ADVICE.get(error.errno or 0, f"{error.strerror or error}; choose another place")
        raise StoreError(f"cannot use {place}: {reason}") from error


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn the import of a package that is not installed into one sentence: ``what`` needs ``extra``.

    Raises:
        SpecError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise SpecError(f"{what} needs {package}: pip install 'ssl-backdoor[{extra}]'") from error


def summarize_error(error: BaseException) -> str:
    """One printable line on ``error``: a project error's own message, or the type and first line of any other."""
    if isinstance(error, SslBackdoorError):
        return to_printable_line(str(error))
    origin = getattr(error, "cause", None)  # of errors that Ray passes on from a worker
    error = origin if isinstance(origin, BaseException) else error
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"unexpected {type(error).__name__}: {to_printable_line(first)[:300]}; the log of this run has the rest"


def to_printable_line(text: str) -> str:
    """``text`` on one line, without control characters and without passwords in addresses."""
    return CREDENTIALS.sub("", " ".join(replace_control_chars(text).split()))


def replace_control_chars(text: str) -> str:
    """``text`` on one line, with every unprintable character, such as a terminal's escapes, replaced by a space."""
    return "".join(each if each.isprintable() else " " for each in text)
