"""A web page of a stranger, open in the same browser: it gets nothing of what runs on this machine.

The page does what one did in earnest: it makes a deployment whose first step is a shell script, and asks for a run.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from flows.terminal.reaper import descendants
from infra.stack import http as requests
from tests.support.chromium import chromium, logged_in
from tests.support.command_server import TINY
from tests.support.listening_sockets import listening
from tests.support.prefect_home import give_database
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
EVIL = "evil.example"
ATTACK = """
async ({api, mark}) => {
  const got = [];
  const ask = async (method, path, body, [mode, credentials]) => {
    const text = mode === "no-cors" ? "text/plain" : "application/json";
    const request = {method, mode, credentials, headers: {"Content-Type": text}};
    if (body) request.body = JSON.stringify(body);
    try {
      const answer = await fetch(api + path, request);
      if (answer.type !== "opaque" && answer.status < 400) got.push(method + " " + path);
      return await answer.json();
    } catch (refused) { return {}; }
  };
  for (const mode of [["cors", "omit"], ["cors", "include"], ["no-cors", "include"]]) {
    await ask("GET", "/admin/settings", null, mode);
    const token = await ask("GET", "/csrf-token?client=evil", null, mode);
    const flow = await ask("POST", "/flows/", {name: "evil"}, mode);
    const step = {"prefect.deployments.steps.run_shell_script": {script: "touch " + mark}};
    const made = await ask("POST", "/deployments/", {
      name: "evil", flow_id: flow.id || "00000000-0000-0000-0000-000000000000", work_pool_name: "lab",
      entrypoint: "flows/run.py:experiment", pull_steps: [step],
    }, mode);
    await ask("POST", "/deployments/" + (made.id || "0") + "/create_flow_run", {}, mode);
  }
  const socket = await new Promise(done => {
    const socket = new WebSocket(api.replace("http", "ws") + "/events/in", "prefect");
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
  });
  if (socket !== "refused") got.push("a web socket");
  return got;
}
"""
PEEK = """
async ({urls}) => {
  const got = [];
  for (const [method, url] of urls) for (const credentials of ["omit", "include"]) {
    try {
      const answer = await fetch(url, {method, credentials, body: method === "GET" ? undefined : "{}"});
      if (answer.status < 400) got.push(method + " " + url);
    } catch (refused) { }
  }
  return got;
}
"""


@contextmanager
def strange_page() -> Iterator[int]:
    """A server of an empty page; its port."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>nothing to see</title>")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def strange_session(stack) -> Iterator[tuple[BrowserContext, list[str]]]:
    """A browser of somebody who is logged in, and the origins of pages that are none of the services'."""
    # The browser takes evil.example for this machine, as a name server of the stranger's may tell it.
    with strange_page() as port, chromium(f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as browser:
        yield logged_in(browser, stack), [f"http://{EVIL}:{port}", f"http://127.0.0.1:{port}"]


def attacked(session: BrowserContext, origin: str, api: str, mark: Path) -> list[str]:
    """What a page of ``origin`` was answered."""
    page = session.new_page()
    try:
        page.goto(origin)
        return page.evaluate(ATTACK, {"api": api, "mark": str(mark)})
    finally:
        page.close()


def test_a_strange_page_gets_nothing_of_the_services(stack, tmp_path):
    mark, prefect = tmp_path / "mark", stack.config.url("prefect")
    flows = stack.api("flows/filter", {})
    with strange_session(stack) as (session, origins):
        for origin in origins:
            assert attacked(session, origin, f"{prefect}/api", mark) == [], origin
        page = session.new_page()
        page.goto(origins[0])
        numbers = {name: f"http://127.0.0.1:{port}" for name, port in stack.config.ports.items()}
        experiment = f"{numbers['mlflow']}/api/2.0/mlflow/experiments"
        urls = [
            ("GET", f"{experiment}/search?max_results=1"),
            ("POST", f"{experiment}/create"),
            ("GET", f"{numbers['ray_agent']}/api/job_agent/jobs/"),
            ("POST", f"{numbers['ray_agent']}/api/job_agent/jobs/"),
            *(("GET", f"{numbers[name]}/") for name in numbers if name.startswith("s3")),
            ("GET", f"{numbers['s3_volume']}/status"),
            ("POST", f"{numbers['s3_master']}/dir/assign"),
            ("POST", f"{numbers['s3_filer']}/buckets/artifacts/evil"),
        ]
        assert page.evaluate(PEEK, {"urls": urls}) == []
        page.close()
    assert stack.api("flows/filter", {}) == flows
    assert [one["name"] for one in stack.api("deployments/filter", {}) if one["name"] == "evil"] == []
    assert not mark.exists()


def test_a_name_that_leads_here_is_no_address_of_ours(stack):
    with strange_session(stack) as (session, _):
        for name in ("prefect", "mlflow"):
            page = session.new_page()
            answer = page.goto(f"http://{EVIL}:{stack.config.ports[name]}/")
            assert answer.status == 403
            page.close()


def test_no_page_shows_one_of_ours_inside_itself(stack):
    with strange_session(stack) as (session, origins):
        page = session.new_page()
        page.goto(origins[0])
        inside = (
            "url => { const frame = document.createElement('iframe'); frame.src = url; document.body.append(frame) }"
        )
        with page.expect_response(lambda answer: answer.url.startswith(stack.config.url("prefect"))) as answered:
            page.evaluate(inside, stack.config.url("prefect"))
        assert answered.value.status == 403


def test_a_strange_page_gets_nothing_of_a_shells_own_server(stack, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_", "MLFLOW_"))}
    env["SSL_BACKDOOR_HOME"] = str(tmp_path / "home")
    give_database(tmp_path / "home")
    command = [sys.executable, "-m", "flows.cli", "train", "demo", "--methods", "byol", *TINY]
    shell = subprocess.Popen([*command, "--set", "train.fit.epochs=500"], env=env, start_new_session=True)

    def api() -> str | None:
        for _, port in listening(descendants(shell.pid)):
            if requests.request(f"http://127.0.0.1:{port}/api/health") == (200, "true"):
                return f"http://127.0.0.1:{port}/api"
        return None

    try:
        wait_until(api, timeout_s=60, what="the shell's server")
        address = api()
        with strange_session(stack) as (session, origins):
            for origin in origins:
                assert attacked(session, origin, address, tmp_path / "mark") == [], origin
        assert shell.poll() is None, "it ran all the time"
    finally:
        shell.send_signal(signal.SIGINT)
        assert shell.wait(60) == 130


def test_the_attack_works_where_nothing_is_guarded():
    """What the page does is no bluff: a server that answers everybody gives it all it asks for."""

    class Open(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps({"id": "1", "token": "t"}).encode()
            self.send_response(200)
            for name, value in (("Origin", self.headers.get("Origin", "*")), ("Credentials", "true")):
                self.send_header(f"Access-Control-Allow-{name}", value)
            self.send_header("Access-Control-Allow-Headers", "Content-Type")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_OPTIONS = answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Open)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with strange_page() as port, chromium() as browser:
            api = f"http://127.0.0.1:{server.server_address[1]}"
            found = attacked(browser.new_context(), f"http://127.0.0.1:{port}", api, Path("/nowhere"))
    finally:
        server.shutdown()
        server.server_close()
    assert "POST /deployments/" in found
    assert "POST /deployments/1/create_flow_run" in found
