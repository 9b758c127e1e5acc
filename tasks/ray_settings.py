"""Environment of every Ray process of this project."""

from collections.abc import Mapping

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
