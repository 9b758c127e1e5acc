"""What commands print: one line for each that is meant, no control character, and a word where nobody takes it."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ssl_backdoor.errors import UserError, replace_control_chars, to_printable_line


class NobodyReadsError(Exception):
    """The reader of stdout, such as ``head``, has left."""


def print_lines(lines: Iterable[str]) -> None:
    """Print ``lines`` on stdout as they come.

    Raises:
        NobodyReadsError: the reader has left.
        UserError: stdout takes nothing.
    """
    for line in lines:
        with _needs_stdout():
            sys.stdout.write(f"{replace_control_chars(line)}\n")
            sys.stdout.flush()


def print_json(data: object, indent: int | None = None) -> None:
    """Print ``data`` on stdout as JSON of ASCII characters; raises as ``print_lines`` does."""
    with _needs_stdout():
        sys.stdout.write(f"{json.dumps(data, indent=indent, allow_nan=False)}\n")
        sys.stdout.flush()


def print_error(text: str, *, is_new: bool = False) -> None:
    """Print one sentence on stderr, behind the program's name; where nobody takes it the exit code says enough.

    With ``is_new`` on a line of its own: a terminal shows ``^C`` on the one where it stands.
    """
    with suppress(OSError, ValueError):
        start = "\n" if is_new else ""
        print(f"{start}ssl-backdoor: {to_printable_line(text)}", file=sys.stderr, flush=True)


def open_standard_streams() -> None:
    """Give those of descriptors 0 to 2 that are closed to /dev/null: a database or a socket would get their numbers.

    A closed stderr may then be written to; ``sys.stdout`` stays None where stdout was closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)


@contextmanager
def _needs_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)  # at its end Python would try to write once more what was not taken
        os.close(nothing)
        if isinstance(error, BrokenPipeError):
            raise NobodyReadsError from error
        raise UserError(f"stdout cannot be written ({error.strerror}): redirect it to another place") from error
