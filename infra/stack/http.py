"""Small JSON requests to the stack's own servers; no proxy is ever asked."""

import json
from typing import Any

import httpx


def request(url: str, body: object = None, timeout_s: float = 5.0, method: str | None = None) -> tuple[int, str]:
    """Status and text of the answer (GET, or POST of ``body`` as JSON); status 0 where nobody answers."""
    verb = method or ("GET" if body is None else "POST")
    try:
        with httpx.Client(trust_env=False, timeout=timeout_s) as client:
            answer = client.request(verb, url, json=body)
    except httpx.HTTPError as error:
        return 0, str(error)
    return answer.status_code, answer.text


def parsed(text: str) -> Any:
    """``text`` as JSON; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
