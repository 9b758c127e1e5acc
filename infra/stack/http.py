"""Small JSON requests to the stack's own servers; no proxy is ever asked."""

import json
import ssl
from functools import cache
from typing import Any

import httpx

from infra.stack.config import Config, prefect_login

_PREFECT_CLIENT = "infra.stack"
"""Our name for the tokens by which Prefect tells a program's request from one that a page was made to send."""


@cache
def _certificates() -> ssl.SSLContext:
    """Read once, which takes 30 ms: the servers are asked several times a second while they start."""
    return ssl.create_default_context()


def request(
    url: str,
    body: object = None,
    timeout_s: float = 5.0,
    method: str | None = None,
    login: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Status and text of the answer (GET, or POST of ``body`` as JSON); status 0 where nobody answers.

    ``login`` is ``user:password``.
    """
    verb = method or ("GET" if body is None else "POST")
    user, _, password = (login or "").partition(":")
    try:
        given = (user, password) if login else None
        with httpx.Client(verify=_certificates(), trust_env=False, timeout=timeout_s, auth=given) as client:
            answer = client.request(verb, url, json=body, headers=headers)
    except httpx.HTTPError as error:
        return 0, str(error)
    return answer.status_code, answer.text


def ask_prefect(
    config: Config, page: str, body: object = None, timeout_s: float = 5.0, method: str | None = None
) -> tuple[int, str]:
    """``request`` of a page of Prefect's API, such as ``work_pools/lab``, with all that the server asks for."""
    api, login = f"{config.url('prefect')}/api", prefect_login(config)
    headers = {}
    if body is not None or method not in (None, "GET"):
        status, text = request(f"{api}/csrf-token?client={_PREFECT_CLIENT}", timeout_s=timeout_s, login=login)
        if status != 200:
            return status, text
        headers = {"Prefect-Csrf-Token": parse_json(text)["token"], "Prefect-Csrf-Client": _PREFECT_CLIENT}
    return request(f"{api}/{page}", body, timeout_s, method, login, headers)


def parse_json(text: str) -> Any:
    """``text`` as JSON; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
