"""Environment of every Ray process of this project."""

import os
import tempfile
from collections.abc import Mapping

from ssl_backdoor.errors import UserError

_NO_PORT = "-1"

RAY_CLOSED: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray takes the machine for one that cannot join a cluster: loopback
    # Pages of numbers that ask for no token are not served:
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": _NO_PORT,
    "AUTOSCALER_METRIC_PORT": _NO_PORT,
}
"""For a cluster of one machine: on loopback alone, and behind a token."""

RAYS = "r"
"""Ray's folder inside one that is its user's alone: Ray opens its own to everybody. Short, for names of sockets."""

PREFIX = "ssl-ray-"
"""Of the names of folders for Ray's own clusters."""
_MAX_FOLDER_BYTES = 107 - len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.0")
"""Linux takes names of sockets of 107 bytes."""


def folder_for_sockets() -> str:
    """A folder for temporary files whose name leaves room for Ray's sockets: TMPDIR, or else /tmp.

    Raises:
        UserError: neither can be used.
    """
    places = [tempfile.gettempdir(), "/tmp"]  # noqa: S108  what is made there is new, and its user's alone
    suffix_bytes = len(os.sep + PREFIX + "12345678")
    for place in places:
        if len(os.fsencode(place)) + suffix_bytes <= _MAX_FOLDER_BYTES and os.access(place, os.W_OK | os.X_OK):
            return place
    raise UserError(
        f"{places[0]!r} is too long a name for the sockets of Ray, and /tmp cannot be written: "
        f"set TMPDIR to a folder of at most {_MAX_FOLDER_BYTES - suffix_bytes} bytes"
    )
