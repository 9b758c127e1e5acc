"""Runs as Prefect's page, a schedule and CI start them: against the services of `make up`, by a worker."""

from pathlib import Path

import pytest

from infra.stack import object_store
from tests.support.command_server import DEMO_SETTINGS
from tests.support.deployment_runs import small, training
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_a_finished_run_names_its_report_and_shows_the_way(stack, demo):
    state = demo["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed")
    assert state["message"].startswith("report: s3://artifacts/lab/report/")
    place = state["message"].removeprefix("report: s3://artifacts/")
    listed = object_store.client(stack.config, "reader").list_objects_v2(Bucket="artifacts", Prefix=place)
    assert {Path(entry["Key"]).name for entry in listed["Contents"]} >= {"manifest.json", "report.html", "report.md"}
    shown = stack.api("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [demo["id"]]}}})
    by_key = {one["key"]: one for one in shown}
    assert "| **poisoned** |" in by_key["report"]["data"]
    assert stack.config.url("mlflow") in by_key["mlflow"]["data"]
    assert "all stages" in {one["description"] for one in shown if one["type"] == "progress"}


def test_mlflow_has_the_run_and_the_page_from_its_bucket(stack, demo):
    key = demo["state"]["message"].rpartition("/")[2]
    script = f"""
import mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("demo").experiment_id
(parent,) = client.search_runs([experiment], "tags.`ssl_backdoor.report_key` = '{key}'")
cells = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{{parent.info.run_id}}'")
print(len(cells), parent.info.status, [one.path for one in client.list_artifacts(parent.info.run_id, "report")])
"""
    told = stack.client(script)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("10 FINISHED")
    assert "report/report.html" in told.stdout


def test_the_same_again_computes_nothing(stack, demo):
    done = stack.deploy("experiment/demo", "--watch", settings=DEMO_SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    run = stack.flow_run(done)
    assert run["id"] != demo["id"]
    assert f" ssl-backdoor.ended * {run['state']['message']}\n" in done.stdout
    tasks = stack.api("task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    names = {one["state"]["name"] for one in tasks if not one["name"].startswith("record")}
    assert names == {"Reused"}


def test_cancelling_leaves_no_process(stack):
    flow = stack.queue("experiment/demo", small(40))
    wait_until(lambda: training(stack), timeout_s=400, what="a training")
    stack.api(f"flow_runs/{flow}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    assert stack.ended(flow, timeout_s=180)[0]["state"]["type"] == "CANCELLED"
    wait_until(lambda: not training(stack), timeout_s=180, what="the trainings to end")
    assert stack("status")[0] == 0


def test_the_nightly_run_is_planned(stack):
    search = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait_until(lambda: stack.api("flow_runs/filter", search), timeout_s=180, what="a scheduled run")
    planned = stack.api("flow_runs/filter", search)
    assert {run["parameters"]["recipe"] for run in planned} == {"demo"}
