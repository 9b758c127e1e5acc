"""Many small experiments while processes and services are killed at random.

`python -m tests.support.random_kills [--experiments 50] [--every 20] [--seed 0]`. They are queued on the deployment,
which does two at a time; every few seconds a process or a service is killed at random, or as soon as the services of
the last time are back. A run that fails or crashes is asked for again, as an operator would. In the end every
experiment has its report once, the store and MLflow agree, and nothing runs any more. Prints one JSON object; exit
code 1 where that is not so.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from infra.stack import object_store, processes
from infra.stack import service as services
from tests.support.cli_process import marked
from tests.support.deployment_runs import small
from tests.support.service_stack import Stack, is_over

SERVICES = ("worker", "mlflow", "prefect", "s3", "ray", "postgres")
LIMIT_S = 3 * 3600


class Campaign:
    """The experiments of one campaign, by number; each has a run that is under way or has come through."""

    def __init__(self, stack: Stack, num: int, seed: int) -> None:
        self.stack = stack
        self.random = random.Random(seed)
        self.deployment = str(stack.api("deployments/name/experiment/demo")["id"])
        self.runs = {number: self.ask(number) for number in range(num)}
        self.reports: dict[int, str] = {}
        self.killed: collections.Counter[str] = collections.Counter()
        self.again: collections.Counter[str] = collections.Counter()

    def ask(self, number: int) -> str:
        """Queue a run of experiment ``number``; its id."""
        asked = small(1000 + number, "train.fit.batch_size=64", "train.fit.epochs=2")
        page = f"deployments/{self.deployment}/create_flow_run"
        return str(self.stack.api(page, {"parameters": asked, "name": f"experiment {number}"})["id"])

    def look(self) -> None:
        """Note the reports that were made; ask again for what failed."""
        for number, run_id in self.runs.items():
            if number in self.reports:
                continue
            run = self.stack.api(f"flow_runs/{run_id}")
            state = run["state"]
            if state["type"] == "COMPLETED":
                self.reports[number] = state["message"].split()[1].rpartition("/")[2]
            elif is_over(run):
                self.again[f"{state['type'].lower()}: {state['message']}"[:200]] += 1
                self.runs[number] = self.ask(number)

    def kill(self) -> None:
        """SIGKILL to a flow, a training or every process of a service, which is then brought back."""
        kind = self.random.choice(("flow", "training", *SERVICES))
        if kind in SERVICES:
            leader = services.running(self.stack.config, kind)
            victims = (
                [each.process.pid for each in processes.members(self.stack.folder, kind, leader)] if leader else []
            )
        else:
            victims = self.pids(kind)[:1]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if victims:
            self.killed[kind] += 1
            say(f"killed {kind}; {len(self.reports)} of {len(self.runs)} reports")
        if kind in SERVICES:
            time.sleep(self.random.uniform(0.0, 5.0))  # how long it is away
            code, out, err = self.stack("up")
            if code != 0:
                raise SystemExit(f"`up` after a killed {kind}: {out}{err}")

    def pids(self, kind: str) -> list[int]:
        """Processes of flows, or those that train, in random order."""
        titles = self.stack.titles()
        if kind == "training":
            found = [pid for pid, title in titles.items() if title.startswith(("ray::train", "ray::defend"))]
        else:
            flows = marked("PREFECT__FLOW_RUN_ID=")
            found = [pid for pid, title in titles.items() if pid in flows and not title.startswith("ray::")]
        self.random.shuffle(found)
        return found

    def findings(self) -> dict[str, Any]:
        """What is there when all is over."""
        known = self.stack.client("from flows.cli import main; main(['reindex'])")
        pages = object_store.client(self.stack.config, "reader").get_paginator("list_objects_v2")
        listed = [key["Key"] for page in pages.paginate(Bucket="artifacts") for key in page.get("Contents", ())]
        kept = sorted(
            key.split("/")[2] for key in listed if key.startswith("lab/report/") and key.endswith("/manifest.json")
        )
        recorded = json.loads(self.stack.client(_RECORDED).stdout)
        unfinished = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING", "SCHEDULED"]}}}}
        stuck = [run for run in self.stack.api("flow_runs/filter", unfinished) if run["id"] in self.runs.values()]
        return {
            "experiments": len(self.runs),
            "reports": len(set(self.reports.values())),
            "lost": len(set(self.reports.values()) - set(kept)),
            "in_store_only": len(set(kept) - set(self.reports.values())),
            "in_mlflow": len(recorded),
            "twice_in_mlflow": sum(count > 1 for count in recorded.values()),
            "store_and_mlflow_agree": set(kept) == set(recorded),
            "checkpoints_left": sum(key.startswith("lab/.checkpoints/") for key in listed),
            "flows_left": len(self.pids("flow")),
            "trainings_left": len(self.pids("training")),
            "stuck_runs": len(stuck),
            "reindex": known.returncode,
            "killed": dict(self.killed),
            "asked_again": dict(self.again),
        }


_RECORDED = """
import collections, json, mlflow
client = mlflow.MlflowClient()
experiments = [one.experiment_id for one in client.search_experiments()]
runs = client.search_runs(experiments, "tags.`ssl_backdoor.report_key` != ''", max_results=10_000)
print(json.dumps(collections.Counter(run.data.tags["ssl_backdoor.report_key"] for run in runs)))
"""
_GOOD = {
    "lost": 0,
    "in_store_only": 0,
    "twice_in_mlflow": 0,
    "store_and_mlflow_agree": True,
    "flows_left": 0,
    "trainings_left": 0,
    "stuck_runs": 0,
    "reindex": 0,
}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def patiently(act: Callable[[], None]) -> None:
    """Do ``act`` unless Prefect is away just now."""
    try:
        act()
    except (httpx.HTTPError, AssertionError, OSError) as error:
        say(f"not now: {type(error).__name__}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=50)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-kills-") as folder:
        stack = Stack(Path(folder) / "home")
        try:
            code, out, err = stack("up")
            if code != 0:
                raise SystemExit(out + err)
            campaign = Campaign(stack, options.experiments, options.seed)
            next_s = time.monotonic() + options.every
            while len(campaign.reports) < options.experiments and time.monotonic() - started_s < LIMIT_S:
                time.sleep(1.0)
                patiently(campaign.look)
                if time.monotonic() >= next_s:
                    next_s += options.every
                    campaign.kill()
                    next_s = max(next_s, time.monotonic())
            time.sleep(2.0)
            found = campaign.findings()
        finally:
            stack("down")
        found["processes_after_down"] = len(stack.members())
    found["minutes"] = round((time.monotonic() - started_s) / 60, 1)
    print(json.dumps(found, indent=1))
    expected = {**_GOOD, "reports": options.experiments, "in_mlflow": options.experiments, "processes_after_down": 0}
    return 0 if all(found[name] == value for name, value in expected.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
