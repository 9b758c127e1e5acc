"""Small JSON requests to the stack's own servers; no proxy is ever asked."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(url: str, body: object = None, timeout_s: float = 5.0, method: str | None = None) -> tuple[int, str]:
    """Status and text of the answer (GET, or POST of ``body`` as JSON); status 0 where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method=method)  # noqa: S310
    try:
        with _OPENER.open(call, timeout=timeout_s) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


def parsed(text: str) -> Any:
    """``text`` as JSON; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
