"""Runs of deployments, one after another in one process, each as Prefect's engine does it for a worker.

A worker begins a process for every run, which imports for seconds before it refuses anything. `python -m
tests.support.shared_engine` reads a JSON list of [flow run, {variable: value}] from stdin, in a worker's environment.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from unittest.mock import patch
from uuid import UUID

from tests.support import ROOT
from tests.support.service_stack import Stack


def run_all(stack: Stack, runs: Mapping[str, Mapping[str, str]], timeout_s: float) -> None:
    """Run flow runs that no worker takes, by id, each with variables of its own; what they raise is not told here."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.shared_engine"],
        env=stack.client_environment,
        cwd=ROOT,
        input=json.dumps(list(runs.items())),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr


def main() -> None:
    from prefect.flow_engine import flow_run_logger, load_flow, load_flow_run, run_flow

    flows = {}
    for run, environment in json.load(sys.stdin):
        with patch.dict(os.environ, {**environment, "PREFECT__FLOW_RUN_ID": run}):
            flow_run = load_flow_run(UUID(run))
            if flow_run.deployment_id not in flows:
                flows[flow_run.deployment_id] = load_flow(flow_run)
            try:
                run_flow(flows[flow_run.deployment_id], flow_run=flow_run, error_logger=flow_run_logger(flow_run))
            except Exception:
                traceback.print_exc()


if __name__ == "__main__":
    main()
