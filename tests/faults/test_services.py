"""A service or a flow is killed while a deployment runs: what was done is kept, the same run again comes through."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.stack import http
from tests.support.deployment_runs import begin, drop_database, finish, flow_process, kept, kill, last_state, small
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
_RECORDED = """
import mlflow
client = mlflow.MlflowClient()
experiments = [one.experiment_id for one in client.search_experiments()]
runs = client.search_runs(experiments, "tags.`ssl_backdoor.report_key` != ''", max_results=10_000)
for run in runs:
    print(run.data.tags["ssl_backdoor.report_key"])
"""


@pytest.fixture(autouse=True)
def whole_again(stack) -> Iterator[None]:
    """A service that a failed test has left dead is back for the next."""
    yield
    if stack("status")[0] != 0:
        assert stack("up")[0] == 0


def recorded(stack) -> list[str]:
    """Keys of the reports in MLflow, one that is there twice twice."""
    told = stack.client(_RECORDED)
    assert told.returncode == 0, told.stderr
    return sorted(told.stdout.split())


def finished(stack) -> dict[str, set[str]]:
    """What lies in the folder of each finished artifact: its manifest, and a folder for each attempt at it."""
    found: dict[str, set[str]] = {}
    for name in kept(stack, ""):
        folder, part = name.split("/")[1:3], name.split("/")[3]
        found.setdefault("/".join(folder), set()).add(part)
    return {artifact: parts for artifact, parts in found.items() if "manifest.json" in parts}


def test_a_killed_and_a_terminated_flow_go_on_and_two_of_them_at_once_make_everything_once(stack):
    asked = small(41)
    begun = begin(stack, asked)
    os.kill(flow_process(begun), signal.SIGKILL)
    assert last_state(stack, begun)[0] == "CRASHED"

    begun = begin(stack, asked)
    os.kill(flow_process(begun), signal.SIGTERM)
    assert last_state(stack, begun) == ("CRASHED", "Execution was aborted by a termination signal.")

    before = finished(stack)
    first, second = finish(stack, asked, times=2)
    place = first["state"]["message"]
    warned = [line for line in stack.log("worker").splitlines() if "WARNING" in line]
    assert second["state"]["message"] == place, warned
    made = {artifact: parts for artifact, parts in finished(stack).items() if artifact not in before}
    assert {artifact for artifact in made if artifact.startswith("report/")} == {"/".join(place.split("/")[-2:])}
    assert {len(parts) for parts in made.values()} == {2}, "a manifest and one attempt each"
    assert recorded(stack).count(place.rpartition("/")[2]) == 1


def test_one_run_comes_through_whichever_service_dies_under_it(stack):
    """It is asked for again after each, goes on where it was left, and is over at the last."""
    asked = {**small(44), "until": "train"}
    begun = begin(stack, asked)
    kill(stack, "worker")  # and the flow with it
    assert stack("status")[0] == 1
    assert stack("up")[0] == 0
    assert last_state(stack, begun)[0] == "CRASHED"

    late = stack.queue("experiment/demo", {**asked, "resources": {"stage_timeout_s": 0.5}})
    kind, sentence = last_state(stack, late)
    assert kind == "FAILED"
    assert sentence.endswith(
        ": ended after 0.5 s, its limit (stage_timeout_s); checkpoints are kept; start the same run again to resume"
    )

    begun = begin(stack, asked, store_retries=0)
    kill(stack, "s3")
    kind, sentence = last_state(stack, begun)
    assert kind == "FAILED"
    assert "s3://artifacts/lab" in sentence
    assert len(sentence.splitlines()) == 1
    assert stack("up")[0] == 0

    begun = begin(stack, asked)
    kill(stack, "ray")
    assert last_state(stack, begun) == (
        "FAILED",
        f"the Ray cluster at {stack.config.address('ray')} stopped answering: start it (`make up`); finished stages "
        "and checkpoints are kept; start the same run again to resume",
    )
    assert stack("up")[0] == 0

    begun = begin(stack, asked, stage_timeout_s=300)
    search = {"logs": {"flow_run_id": {"any_": [begun]}}, "limit": 200}
    wait_until(
        lambda: any(": resumes after step " in line["message"] for line in stack.api("logs/filter", search)),
        timeout_s=60,
        what="the log",
    )
    kill(stack, "prefect")
    assert stack("up")[0] == 0
    assert last_state(stack, begun)[0] in ("COMPLETED", "FAILED", "CRASHED")
    finish(stack, asked)
    assert http.request(f"{stack.config.url('prefect')}/api/health")[0] == 200


def test_a_run_without_mlflow_ends_well_and_a_lost_mlflow_database_is_refilled_each_report_once(stack):
    kill(stack, "mlflow")
    (run,) = finish(stack, small(44, "evaluation.probes.knn.neighbours=7"))
    assert "not in MLflow yet" in run["state"]["message"]
    drop_database(stack, "mlflow")
    assert stack("up")[0] == 0
    assert recorded(stack) == []
    reports = sorted(artifact.removeprefix("report/") for artifact in finished(stack) if artifact.startswith("report/"))
    assert run["state"]["message"].split()[1].rpartition("/")[2] in reports
    with ThreadPoolExecutor(3) as threads:  # each finds the same datasets, tags and runs missing
        at_once = list(threads.map(stack.client, ["from flows.cli import main; main(['reindex'])"] * 3))
    for told in (*at_once, stack.client("from flows.cli import main; main(['reindex'])")):
        assert (told.returncode, told.stderr.count("MLflow cannot")) == (0, 0), told.stderr
        assert all(f"report/{key[:12]}" in told.stdout for key in reports), told.stderr
    assert recorded(stack) == reports
