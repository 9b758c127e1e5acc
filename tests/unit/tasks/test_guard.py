import asyncio
import base64

import pytest

from tasks.guard import Guard, own_addresses

HERE = "127.0.0.1:4200"
LOGIN = "lab:a-secret"
AUTHORIZED = {"Authorization": f"Basic {base64.b64encode(LOGIN.encode()).decode()}"}
ELSEWHERE = "http://evil.example"


async def _everything(scope, receive, send):
    """Stands for the server: answers all it is asked."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"what is kept here"})


def ask(headers, method="GET", path="/", kind="http", login=None, public=()):
    """All that is sent in answer. ``headers`` are pairs, or a mapping beside the right Host."""
    if isinstance(headers, dict):
        headers = [("Host", HERE), *headers.items()]
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(_everything, own_addresses(4200), login, public)(scope, None, send))
    return sent


def status(*arguments, **options):
    return ask(*arguments, **options)[0]["status"]


def test_own_pages_and_programs_are_answered():
    assert status({}) == 200
    assert status([("Host", "localhost:4200")]) == 200
    assert status([("Host", "[::1]:4200")]) == 200
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        assert status({"Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin"}, method) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4200", "127.0.0.1", "127.0.0.1:80", "", "127.0.0.1:4200.evil.example"]
)
def test_a_request_to_another_name_is_refused(host):
    assert status([("Host", host)]) == 403


def test_a_request_without_a_name_or_with_two_is_refused():
    assert status([]) == 403
    assert status([("Host", HERE), ("Host", HERE)]) == 403
    assert status([("Host", HERE), ("Origin", f"http://{HERE}"), ("Origin", ELSEWHERE)]) == 403


@pytest.mark.parametrize("origin", [ELSEWHERE, "null", "", "http://127.0.0.1:8000", "file://", f"ftp://{HERE}"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_another_origin_are_refused(origin, method):
    assert status({"Origin": origin}, method) == 403


def test_a_link_is_followed_but_no_part_of_a_page_is_given_out():
    opened = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert status(opened) == 200
    assert status(opened, "POST") == 403
    assert status({**opened, "Sec-Fetch-Site": "same-site"}) == 200
    for changed in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}):
        assert status({**opened, **changed}) == 403


def test_the_password_is_asked_for():
    assert status({}, login=LOGIN) == 401
    refused = ask({}, login=LOGIN)[0]
    assert (b"www-authenticate", b'Basic realm="ssl-backdoor"') in refused["headers"]
    for wrong in ("Basic x", "", f"Bearer {LOGIN}", AUTHORIZED["Authorization"] + "A"):
        assert status({"Authorization": wrong}, login=LOGIN) == 401
    assert status(AUTHORIZED, login=LOGIN) == 200
    assert status({**AUTHORIZED, "Origin": ELSEWHERE}, login=LOGIN) == 403
    assert status({}, path="/health", login=LOGIN, public=("/health",)) == 200
    assert status({}, path="/healthy", login=LOGIN, public=("/health",)) == 401


def test_web_sockets_are_guarded_as_well():
    assert ask({"Origin": ELSEWHERE}, kind="websocket")[0]["type"] == "websocket.close"
    assert ask({}, kind="websocket", login=LOGIN)[0]["type"] == "websocket.close"
    assert ask({"Origin": f"http://{HERE}"}, kind="websocket")[0]["type"] == "websocket.accept"
    assert ask(AUTHORIZED, kind="websocket", login=LOGIN)[0]["type"] == "websocket.accept"


def test_pages_may_ask_nothing_of_other_machines():
    policy = dict(ask({})[0]["headers"])[b"content-security-policy"].decode()
    assert "connect-src 'self'" in policy
    assert f"ws://{HERE}" in policy
    assert "frame-ancestors 'self'" in policy
