"""What people look at, in a real Chromium: Prefect's run form and run page, MLflow's comparison, the report.

Set SSL_BACKDOOR_SHOTS to a folder to keep the screenshots.
"""

import ipaddress
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from infra.stack import object_store
from tests.support.chromium import chromium, logged_in
from tests.support.command_server import DEMO_SETTINGS
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
ABSENT = ("/favicon.ico", "/favicon-dark.ico", "/ico/undefined.svg", "/mlflow/users/current")
"""What Prefect's and MLflow's own pages ask for and their servers do not have."""
PATIENCE_MS = 60_000
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def session(stack) -> Iterator[BrowserContext]:
    """A browser in which somebody has logged in once."""
    with chromium() as browser:
        yield logged_in(browser, stack)


@pytest.fixture
def page(session: BrowserContext) -> Iterator[Page]:
    """A page that may neither err nor ask anything of another machine."""
    wrong: list[str] = []
    page = session.new_page()
    page.set_default_timeout(PATIENCE_MS)

    def told(message) -> None:
        is_harmless = message.location["url"].endswith(ABSENT) or "ResizeObserver loop" in message.text
        if message.type == "error" and not is_harmless:
            wrong.append(f"console: {message.text} ({message.location['url']})")

    def asked(request) -> None:
        parts = urlsplit(request.url)
        is_local = parts.scheme in ("data", "blob", "file") or ipaddress.ip_address(parts.hostname).is_loopback
        if not is_local:
            wrong.append(f"request: {request.url}")

    page.on("console", told)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("request", asked)
    page.wrong = wrong  # a test that provokes an error takes it out
    yield page
    page.close()
    assert wrong == []


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("SSL_BACKDOOR_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def deployment(stack, name: str) -> str:
    return stack.api(f"deployments/name/{name}")["id"]


def test_a_run_is_started_from_the_form_and_a_bad_value_refused(stack, demo, page):
    place = f"{stack.config.url('prefect')}/deployments/deployment/{deployment(stack, 'experiment/demo')}"
    page.goto(f"{place}/run")
    for text in ("The first N trigger/target pairs. 0 is the recipe's own number.", "Saha2022TargetedSpec"):
        expect(page.get_by_text(text)).to_be_visible()
    page.get_by_role("radio", name="TrainSpec").or_(page.get_by_text("TrainSpec", exact=True)).first.click()
    expect(page.get_by_text("MoCoV2Spec", exact=True)).to_be_visible()
    keep(page, "prefect-form-train")
    page.get_by_text("AsInRecipeSpec", exact=True).nth(2).click()

    pairs = page.locator("input[type=number]").first
    pairs.fill("-1")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("-1 is less than the minimum of 0").first).to_be_visible()
    keep(page, "prefect-form-refused")
    assert page.wrong
    page.wrong.clear()

    pairs.fill("1")
    lines = page.locator("xpath=//*[text()='settings (Optional)']/following::textarea")  # and one of a later field
    for index, setting in enumerate(DEMO_SETTINGS):
        page.get_by_role("button", name="Add item").click()
        expect(lines).to_have_count(index + 2)
        lines.nth(index).fill(setting)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: not url.endswith("/run"), wait_until="commit")
    search = {
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
        "sort": "EXPECTED_START_TIME_DESC",
    }

    def ended() -> list[dict]:
        runs = stack.api("flow_runs/filter", search)
        return [run for run in runs if run["parameters"].get("pairs") == 1]

    wait_until(ended, timeout_s=180, what="the run from the form")
    (run,) = ended()
    assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
    assert tuple(run["parameters"]["settings"]) == DEMO_SETTINGS


def test_the_run_page_shows_stages_and_the_answer(stack, demo, page):
    page.goto(f"{stack.config.url('prefect')}/runs/flow-run/{demo['id']}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("s3://artifacts/lab/report/").first).to_be_visible()
    keep(page, "prefect-run")
    page.get_by_text("Artifacts", exact=True).last.click()
    expect(page.get_by_text("report", exact=True).first).to_be_visible()
    expect(page.get_by_text("mlflow", exact=True).first).to_be_visible()
    keep(page, "prefect-artifacts")


def test_mlflow_compares_six_cells_under_useful_names_and_has_their_machines(stack, demo, page):
    url = stack.config.url("mlflow")
    known = stack.mlflow("experiments/search", {"max_results": 100})["experiments"]
    (experiment,) = [one["experiment_id"] for one in known if one["name"] == "demo"]
    runs = stack.mlflow("runs/search", {"experiment_ids": [experiment]})["runs"]
    cells = [
        one["info"]["run_id"] for one in runs if any(tag["key"] == "mlflow.parentRunId" for tag in one["data"]["tags"])
    ][:6]
    page.goto(f"{url}/#/compare-runs?runs={quote(json.dumps(cells))}&experiments={quote(json.dumps([experiment]))}")
    expect(page.get_by_text("Comparing 6 Runs from 1 Experiment")).to_be_visible()
    for column in ("arm", "attack.kind", "attack.num_poisons", "accuracy/clean/linear_100", "method", "pair"):
        expect(page.get_by_text(column, exact=True).first).to_be_attached()
    keep(page, "mlflow-compare")
    page.goto(f"{url}/#/experiments/{experiment}/runs/{cells[0]}/system-metrics")
    for chart in ("images_per_second", "data_wait_percentage", "cpu_utilization_percentage", "step_seconds"):
        expect(page.get_by_text(chart, exact=True).first).to_be_visible()
    keep(page, "mlflow-system")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_three_clicks_from_a_run_to_which_defence_wins(stack, demo, page, scheme):
    page.emulate_media(color_scheme=scheme)
    if scheme == "dark":
        for name, value in (("_mlflow_dark_mode_toggle_enabled", "true"), ("databricks-dark-mode-pref", "dark")):
            page.add_init_script(f"localStorage.setItem('{name}', '{value}')")
    page.goto(f"{stack.config.url('prefect')}/runs/flow-run/{demo['id']}")
    page.get_by_text("Artifacts", exact=True).last.click()
    page.get_by_text("mlflow", exact=True).first.click()
    link = page.get_by_role("link", name="viewStateShareKey").or_(page.locator("a[href*=viewStateShareKey]")).first
    expect(link).to_be_visible()
    keep(page, f"prefect-mlflow-{scheme}")
    page.set_viewport_size({"width": 2400, "height": 1400})  # the table draws the columns that are in view alone
    page.goto(link.get_attribute("href"))

    expect(page.get_by_text("10 matching runs")).to_be_visible()
    for heading in ("clean_accuracy", "attack_success_rate", "specific_excess", "target_false_positives", "z_score"):
        expect(page.get_by_test_id(f"sort-header-{heading}")).to_be_visible()
    for group in ("clean-trained", "poisoned", "poisoned + CompRess", "poisoned + distilled image tower, backdoor"):
        expect(page.get_by_text(f"Group: {group}", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="poisoned + CompRess, trigger").first).to_be_visible()  # a child
    keep(page, f"mlflow-table-{scheme}")
    page.locator("label:has(input[value=CHART])").click()
    expect(page.get_by_text("Which defence wins")).to_be_visible()
    for chart in ("attack_success_rate", "clean_accuracy"):
        expect(page.get_by_text(chart, exact=True).last).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(2)
    assert page.locator(".js-plotly-plot").first.locator(".bars .point").count() == 10
    keep(page, f"mlflow-charts-{scheme}")


def test_an_analyst_finds_the_answer_the_encoder_and_its_images(stack, demo, page):
    url, report = stack.config.url("mlflow"), demo["state"]["message"].rpartition("/")[2]
    known = stack.mlflow("experiments/search", {"max_results": 100})["experiments"]
    (experiment,) = [one["experiment_id"] for one in known if one["name"] == "demo"]
    asked = {"experiment_ids": [experiment], "filter": f"tags.`ssl_backdoor.report_key` = '{report}'"}
    (parent,) = [one["info"]["run_id"] for one in stack.mlflow("runs/search", asked)["runs"]]
    of_parent = f"tags.`mlflow.parentRunId` = '{parent}' AND tags.arm = 'poisoned + CompRess'"
    (cell,) = stack.mlflow("runs/search", {"experiment_ids": [experiment], "filter": of_parent})["runs"]
    page.goto(f"{url}/#/experiments/{experiment}/runs/{parent}?workflowType=machine_learning")
    for text in ("Does a patch on unlabelled images", "Attack"):
        expect(page.get_by_text(text).first).to_be_visible()
    expect(page.get_by_text("attack_success_rate/poisoned with CompRess", exact=True)).to_be_visible()
    keep(page, "mlflow-parent")
    place = f"{url}/#/experiments/{experiment}/runs/{cell['info']['run_id']}"
    page.goto(place)
    expect(page.get_by_text("defend-").first).to_be_visible()  # the encoder, as a model
    keep(page, "mlflow-child")
    page.goto(f"{place}/artifacts/examples/triggered_and_nearest.png")
    expect(page.get_by_text("examples/triggered_and_nearest.png").first).to_be_visible()
    keep(page, "mlflow-examples")


def test_the_report_is_whole_by_itself(stack, demo, page, tmp_path):
    prefix = demo["state"]["message"].removeprefix("report: s3://artifacts/")
    reader, file = object_store.client(stack.config, "reader"), tmp_path / "report.html"
    keys = [entry["Key"] for entry in reader.list_objects_v2(Bucket="artifacts", Prefix=prefix)["Contents"]]
    (key,) = [key for key in keys if key.endswith("/report.html")]
    file.write_bytes(reader.get_object(Bucket="artifacts", Key=key)["Body"].read())
    page.goto(file.as_uri())
    expect(page.get_by_role("heading").first).to_be_visible()
    broken = page.evaluate("[...document.images].filter(image => !image.complete || !image.naturalWidth).length")
    assert (page.locator("img").count() > 3, broken) == (True, 0)
    keep(page, "report")
