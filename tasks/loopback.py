"""Loopback and proxies: servers of this machine are asked directly, whatever proxy the environment names."""

from collections.abc import Mapping

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def around_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """``NO_PROXY`` in both spellings: what ``environment`` names already, and loopback.

    httpx, requests, botocore, websockets and gRPC read one or the other.
    """
    named = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY")).split(",")
    hosts = dict.fromkeys([*(host.strip() for host in named if host.strip()), *_LOOPBACK])
    return dict.fromkeys(("NO_PROXY", "no_proxy"), "*" if "*" in hosts else ",".join(hosts))
