"""Which TCP and UDP addresses processes listen on, read from /proc."""

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

ON_LOOPBACK = ("unshare", "--user", "--map-root-user", "--net")
ON_LOOPBACK += ("sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Before a command that listens on every interface, such as torchrun: it is given a network that has one alone."""
_LISTENS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
"""State of a listening socket, by table."""


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Address and port of every socket that ``pids`` listen on."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(str(handle.readlink()))
    found = set()
    for table, state in _LISTENS.items():
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.add((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """The kernel writes each 32-bit word in the machine's own byte order (little-endian here)."""
    words = b"".join(bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8))
    address = ipaddress.ip_address(words)
    return str(getattr(address, "ipv4_mapped", None) or address)


def outside_loopback(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Those of ``listening`` that another machine could reach."""
    return {(address, port) for address, port in listening(pids) if not is_loopback(address)}


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach ``address``."""
    return ipaddress.ip_address(address).is_loopback
