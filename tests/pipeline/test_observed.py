"""What an operator sees of a run: Prefect's logs, the files beside them, MLflow's system metrics."""

import json
import re
from datetime import datetime

import pytest

from infra.stack import ray_head
from tasks.ray_settings import RAYS
from tests.support.command_server import DEMO_SETTINGS
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
SYSTEM = {
    "system/images_per_second",
    "system/step_seconds",
    "system/data_wait_percentage",
    "system/cpu_utilization_percentage",
    "system/resident_memory_megabytes",
    "system/peak_resident_memory_megabytes",
}


def told(stack, run: dict) -> list[dict]:
    """What is under Logs on a flow run's page, from its planning to the report; sent in batches, a moment later."""
    search = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC", "limit": 200}

    def lines() -> list[dict]:
        return [line for line in stack.api("logs/filter", search) if line["name"] == "ssl_backdoor"]

    wait_until(lambda: any(line["message"].startswith("report: ") for line in lines()), timeout_s=120, what="the logs")
    return lines()


def events(lines: list[dict], what: str) -> dict[str, list[str]]:
    """ "stage/key" of the lines whose message goes on with ``what``, by stage."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := re.search(rf"\((\w+)/([0-9a-f]{{12}})\): {what}", line["message"]):
            found.setdefault(match[1], []).append(match[2])
    return {stage: sorted(keys) for stage, keys in found.items()}


def tasks(stack, run: dict) -> dict[str, dict]:
    found = stack.api("task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return {one["id"]: one for one in found if not one["name"].startswith("record")}


def test_the_run_page_logs_each_stage_with_its_artifact(stack, demo):
    lines = told(stack, demo)
    assert lines[0]["message"] == "demo: 3 run(s), up to report, artifacts in s3://artifacts/lab"
    assert lines[-1]["message"] == demo["state"]["message"]
    made: dict[str, list[str]] = {}
    for one in tasks(stack, demo).values():
        assert one["state"]["name"] == "Completed"
        stage, key = one["state"]["message"].split("/")[-2:]
        made.setdefault(stage, []).append(key[:12])
    made = {stage: sorted(keys) for stage, keys in made.items()}
    assert events(lines, r"begins on \S+, process \d+$") == made
    assert events(lines, r"finished after [\d.]+ s$") == made
    trained = events(lines, r"trained at [\d,]+ images/s, [\d.e-]+ s a step, \d+% of it waiting for data, ")
    assert trained == {stage: made[stage] for stage in ("train", "defend")}


def test_a_line_is_also_on_the_page_of_its_stage(stack, demo):
    by_id = tasks(stack, demo)
    staged = [line for line in told(stack, demo) if "): " in line["message"]]
    assert {line["task_run_id"] for line in staged} == set(by_id)
    for line in staged:
        assert line["message"].startswith(f"{by_id[line['task_run_id']]['name']} (")


def test_a_stage_that_waits_for_its_turn_is_queued_not_running(stack, demo):
    for one in tasks(stack, demo).values():
        states = stack.api(f"task_run_states/?task_run_id={one['id']}")
        names = [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]
        assert names[-4:] in (
            ["Running", "Queued", "Running", "Completed"],
            ["Pending", "Running", "Queued", "Completed"],
        )


def test_the_workers_file_at_ray_names_the_artifact_too(stack, demo):
    trained = {one["state"]["message"].split("/")[-1][:12] for one in tasks(stack, demo).values()}
    files = (ray_head.temp_folder(stack.config) / RAYS / "session_latest" / "logs").glob("worker-*.err")
    text = "\n".join(file.read_text() for file in files)
    named = set(re.findall(r"\((?:train|defend|evaluate)/(\w{12})\): begins on", text))
    assert named & trained
    assert stack.config.secrets["s3_writer_secret_key"] not in text


def test_a_program_is_told_in_json_what_is_reused_and_what_fails(stack, demo):
    settings = [part for one in DEMO_SETTINGS for part in ("--set", one)]
    script = f"""
from flows.cli import main
for more in ([], ["--set", "attack.num_poisons=1000"]):
    try:
        main(["poison", "demo", "--json", *{settings!r}, *more])
    except SystemExit:
        pass
"""
    done = stack.client(script, SSL_BACKDOOR_LOG="json")
    assert json.loads(done.stdout)["recipe"] == "demo"
    told = [line for line in done.stderr.splitlines() if not line.startswith("ssl-backdoor: ")]
    told = [line for line in told if not re.match(r"\d\d:\d\d:\d\d\.\d{3} \| ", line)]  # Prefect's own
    assert [line for line in told if not line.startswith("{")] == []
    lines = [json.loads(line) for line in told]
    lines = [one for one in lines if one["event"] != "remark"]
    planned, *stages, ended = lines[:6]
    assert (planned["event"], ended["event"], ended["message"]) == ("planned", "ended", "done up to poison")
    assert [one["event"] for one in stages] == ["reused"] * 4
    assert sorted(one["stage"] for one in stages) == ["ingest", "poison", "poison", "poison"]
    for one in stages:
        assert one["uri"] == f"s3://artifacts/lab/{one['stage']}/{one['key']}"
        assert one["task_run_id"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])
    failed = [one for one in lines[6:] if one["event"] == "failed"]
    assert failed
    for one in failed:
        assert (one["level"], one["stage"], "is 1000" in one["message"]) == ("error", "poison", True)


def test_mlflow_has_the_speed_and_the_use_of_the_machine(stack, demo):
    key = demo["state"]["message"].rpartition("/")[2]
    script = f"""
import json, mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("demo").experiment_id
(parent,) = client.search_runs([experiment], "tags.`ssl_backdoor.report_key` = '{key}'")
cells = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{{parent.info.run_id}}'")
histories = [
    {{name: [(one.step, one.timestamp, one.value) for one in client.get_metric_history(cell.info.run_id, name)]
      for name in cell.data.metrics if name.startswith("system/")}}
    for cell in cells
]
print(json.dumps([[name for name in parent.data.metrics if name.startswith("system/")], histories]))
"""
    done = stack.client(script)
    assert done.returncode == 0, done.stderr
    of_parent, cells = json.loads(done.stdout)
    assert (of_parent, len(cells)) == ([], 10)
    begun_ms, ended_ms = (1000 * datetime.fromisoformat(demo[name]).timestamp() for name in ("start_time", "end_time"))
    for cell in cells:
        assert SYSTEM <= cell.keys() <= SYSTEM | {name for name in cell if name.startswith("system/gpu_")}
        for points in cell.values():
            assert all(begun_ms <= unix_ms <= ended_ms for _, unix_ms, _ in points)
        (_, _, speed), *_ = cell["system/images_per_second"]
        (_, _, step_s), *_ = cell["system/step_seconds"]
        assert speed * step_s == pytest.approx(64, rel=0.01)  # the batch
        assert all(0 <= percent <= 100 for _, _, percent in cell["system/data_wait_percentage"])
        (peak,) = cell["system/peak_resident_memory_megabytes"]
        assert peak[2] >= max(value for _, _, value in cell["system/resident_memory_megabytes"]) - 1
