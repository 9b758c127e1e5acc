"""Data on https, by ranges of bytes, from hosts that may be asked; redirects, sizes and times are bounded.

A worker reads addresses that somebody else may have typed into a page, so that by default only public hosts are asked:
none on loopback, in a private network or of a cloud's metadata. ``$SSL_BACKDOOR_DATA_HOSTS`` (names parted by commas;
".example.org" stands for all below it) names the only hosts that may be asked, private ones among them. Passwords come
from ``~/.netrc``.
"""

import ipaddress
import logging
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Sequence
from netrc import NetrcParseError
from pathlib import Path
from typing import Any

import httpx

from ssl_backdoor.data.transport import Answer, Listed, ListedFolder
from ssl_backdoor.errors import DataError, SourceAwayError
from ssl_backdoor.store.base import REQUESTS
from ssl_backdoor.threads import parallel_map

TRIES = 7  # with growing pauses: half a minute or so is bridged
TIMEOUT_S = 20.0  # without a byte
ANSWER_S = 300.0  # for all bytes of a request, at most 4 MiB
_MAX_PAUSE_S = 8.0
_MAX_REDIRECTS = 5
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class _RefusedError(DataError):
    """The server's answer, or this project's own: asking again does not help."""


class HttpsTransport:
    """Files on web servers that know ranges and say an ETag or a time of change."""

    def __init__(self) -> None:
        passwords = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        try:
            auth = httpx.NetRCAuth(str(passwords)) if passwords.is_file() else None
        except (OSError, ValueError, NetrcParseError) as error:
            raise DataError(f"cannot read passwords from {passwords} ({type(error).__name__}): correct it") from error
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses, and a redirect's may be signed
        timeout = httpx.Timeout(TIMEOUT_S, connect=5.0)
        self._client = httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}, auth=auth)

    def find(self, addresses: Sequence[str]) -> list[Listed | ListedFolder]:
        """See ``Transport``; there are no folders."""

        def one(address: str) -> Listed | ListedFolder:
            try:
                httpx.URL(address)
            except httpx.InvalidURL as error:
                raise DataError(f"expected https://host/name, found {address:.200} ({error}): correct it") from error
            if address.endswith("/"):
                raise DataError(
                    f"{address:.500} is a folder, which https cannot list: name files, such as {{0..9}}.tar"
                )
            answer = self.read(address, 0, 1)
            return Listed(address, answer.size, answer.tag)

        return list(parallel_map(one, addresses, min(REQUESTS, len(addresses))))

    def read(self, address: str, offset: int, size: int) -> Answer:
        """See ``Transport``."""
        pause_s = 0.5
        for tries_left in reversed(range(TRIES)):
            try:
                return self._read_once(address, offset, size)
            except (httpx.TransportError, SourceAwayError) as error:
                if not tries_left or "CERTIFICATE" in str(error):
                    reason = error if isinstance(error, SourceAwayError) else type(error).__name__
                    raise SourceAwayError(
                        f"cannot read {address:.500} ({reason}): check the address and that its server runs, then run "
                        "again"
                    ) from error
                threading.Event().wait(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _read_once(self, address: str, offset: int, size: int) -> Answer:
        url, end_s = httpx.URL(address), time.monotonic() + ANSWER_S
        for _ in range(_MAX_REDIRECTS + 1):
            _check_host(url, address)
            with self._client.stream("GET", url, headers={"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
                _check_connection(answer, url, address)
                if not answer.is_redirect:
                    return _take(answer, address, offset, size, end_s)
                url = url.join(answer.headers.get("Location", ""))
        raise _RefusedError(
            f"{address:.500} leads to more than {_MAX_REDIRECTS} redirects: give the file's own address"
        )


def _take(answer: httpx.Response, address: str, offset: int, size: int, end_s: float) -> Answer:
    """The bytes of an answer, or why it is none."""
    status = answer.status_code
    if status == 429 or status >= 500:
        raise SourceAwayError(f"its server answers {status}")
    if status in (401, 403, 407):
        raise _RefusedError(
            f"the server of {address:.500} refuses it ({status}): check the address, or give a password in ~/.netrc"
        )
    if status in (404, 410):
        raise _RefusedError(f"there is nothing at {address:.500} ({status}): check the address")
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if status == 416:
        raise _RefusedError(f"{address:.500} is empty, or shorter than it was: restore it, or ingest what is there now")
    if status != 206 or found is None or int(found[1]) != offset:
        raise _RefusedError(
            f"expected a part of {address:.500}, its server answers {status} without, as it does not know ranges: "
            "download the file and give its path"
        )
    total = int(found[2])
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if not tag:
        raise _RefusedError(
            f"the server of {address:.500} says neither ETag nor Last-Modified, so that changed data would not be "
            "found: download the file and give its path"
        )
    data = bytearray()
    for part in answer.iter_raw():
        data += part
        if len(data) > size:
            raise _RefusedError(f"the server of {address:.500} sends more than was asked for: download the file")
        if time.monotonic() > end_s:
            raise SourceAwayError(f"an answer took more than {ANSWER_S:.0f} s")
    if len(data) != min(size, total - offset):
        raise SourceAwayError("its answer broke off")
    return Answer(bytes(data), total, tag)


# ------------------------------------------------------------------------------------------------ whom to ask


def _allowed_hosts() -> list[str]:
    return [one.strip().lower() for one in os.environ.get("SSL_BACKDOOR_DATA_HOSTS", "").split(",") if one.strip()]


def _check_host(url: httpx.URL, address: str) -> None:
    """Refuse another scheme than https, and a host that is not to be asked."""
    if url.scheme != "https" or url.userinfo:
        raise _RefusedError(f"{address:.500} redirects to another scheme than https: give the file's own address")
    if allowed := _allowed_hosts():
        if not any(url.host == one or (one.startswith(".") and url.host.endswith(one)) for one in allowed):
            raise _RefusedError(
                f"{address:.500} leads to the host {url.host!r}, which SSL_BACKDOOR_DATA_HOSTS does not name: add it "
                "there, or give another address"
            )
        return
    if _is_behind_proxy(url.host):
        if re.fullmatch(r"[\d.]+|.*:.*", url.host):
            _check_public(url.host, address)
        return
    try:
        found = socket.getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == socket.EAI_AGAIN:
            raise SourceAwayError(f"the name {url.host!r} cannot be looked up now") from error
        raise _RefusedError(f"no host is known by the name {url.host!r}: check {address:.500}") from error
    for one in found:
        _check_public(str(one[4][0]), address)


def _check_connection(answer: httpx.Response, url: httpx.URL, address: str) -> None:
    """The same of the address that answered: a name may have come to mean another since it was looked up."""
    stream: Any = answer.extensions.get("network_stream")
    peer = stream.get_extra_info("server_addr") if stream is not None else None
    if peer and not _allowed_hosts() and not _is_behind_proxy(url.host):
        _check_public(str(peer[0]), address)


def _is_behind_proxy(host: str) -> bool:
    return bool(urllib.request.getproxies().get("https")) and not urllib.request.proxy_bypass(host)


def _check_public(ip: str, address: str) -> None:
    try:
        is_public = ipaddress.ip_address(ip.partition("%")[0]).is_global
    except ValueError:
        is_public = False
    if not is_public:
        raise _RefusedError(
            f"{address:.500} leads to {ip}, which is no public address: name its host in SSL_BACKDOOR_DATA_HOSTS where "
            "that is meant"
        )
