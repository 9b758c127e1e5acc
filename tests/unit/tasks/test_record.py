"""The record of a report in MLflow: once, whoever writes beside and whatever clocks say, and where people find it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier
from types import SimpleNamespace

import pytest

from flows.plan import plan
from ssl_backdoor.errors import StoreError
from tasks import tracking
from tasks.tracking import mlflow

KEY = "a" * 64
SPEC = plan("demo", None)
REPORT = SimpleNamespace(key=KEY)
STORE = SimpleNamespace(manifest=lambda _: SimpleNamespace(spec=SPEC.model_dump(mode="json")))
LONG_AGO_MS, IN_A_YEAR_MS = 1, 1_900_000_000_000


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


class Lab:
    """An MLflow in which a writer is stopped in the middle of a record, after its first child."""

    def __init__(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address = address
        self.client = mlflow.MlflowClient(address)
        self.experiment = self.client.create_experiment("demo")
        self.meanwhile = lambda own: None
        monkeypatch.setattr(tracking, "_fill", self._fill)

    def _fill(self, client: mlflow.MlflowClient, experiment: str, own: str, *_: object) -> None:
        self.child(own)
        self.meanwhile(own)
        client.log_metric(own, "accuracy", 0.5)

    def child(self, parent: str) -> None:
        made = self.client.create_run(self.experiment, tags={"mlflow.parentRunId": parent})
        self.client.create_logged_model(self.experiment, "encoder", made.info.run_id)

    def left(self, status: str, start_time_ms: int) -> str:
        """What another writer has there."""
        tags = {"ssl_backdoor.report_key": KEY}
        run = self.client.create_run(self.experiment, start_time=start_time_ms, tags=tags).info.run_id
        self.child(run)
        if status != "RUNNING":
            self.client.set_terminated(run, status)
        return run

    def write(self) -> str:
        return tracking.write(REPORT, STORE, mlflow.MlflowClient(self.address))

    def kept(self) -> dict[str, str]:
        """Status of each parent run; their children have no others, and the models no other children."""
        runs = self.client.search_runs([self.experiment])
        parents = {run.info.run_id: run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags}
        children = [run.data.tags["mlflow.parentRunId"] for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert sorted(children) == sorted(parents)
        models = {one.source_run_id for one in self.client.search_logged_models([self.experiment])}
        assert models == {run.info.run_id for run in runs if "mlflow.parentRunId" in run.data.tags}
        return parents


@pytest.fixture
def lab(database, monkeypatch):
    lab = Lab(database, monkeypatch)
    yield lab
    lab.client.rename_experiment(lab.experiment, f"was {lab.experiment}")


@pytest.mark.parametrize("start_time_ms", [LONG_AGO_MS, IN_A_YEAR_MS])
@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_what_another_left_goes_only_when_a_whole_record_is_there(lab, status, start_time_ms):
    seen = {}
    other = lab.left(status, start_time_ms)
    lab.meanwhile = lambda own: seen.update(lab.kept())
    own = lab.write()
    assert seen == {other: status, own: "RUNNING"}
    assert lab.kept() == {own: "FINISHED"}
    assert lab.write() == own


def test_nothing_of_another_goes_where_the_own_record_fails(lab):
    other = lab.left("RUNNING", LONG_AGO_MS)

    def lost(own: str) -> None:
        raise mlflow.exceptions.MlflowException("the server went away")

    lab.meanwhile = lost
    with pytest.raises(StoreError, match="the server went away"):
        lab.write()
    assert sorted(lab.kept().values()) == ["FAILED", "RUNNING"]
    assert lab.kept()[other] == "RUNNING"


def test_a_writer_that_another_overtakes_finds_its_record(lab):
    found = []

    def overtaken(own: str) -> None:
        lab.meanwhile = lambda _: None
        found.append(lab.write())
        lab.child(own)  # it does not know yet

    lab.meanwhile = overtaken
    assert [lab.write()] == found
    assert lab.kept() == {found[0]: "FINISHED"}


def test_an_experiment_that_another_writer_makes_first_is_taken(database, monkeypatch):
    client, look, made = mlflow.MlflowClient(database), mlflow.MlflowClient.get_experiment_by_name, []

    def overtaken(self, name):
        found = look(self, name)
        if not made:
            made.append(client.create_experiment(name))
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", overtaken)
    assert [tracking._experiment(client, "made by two")] == made


def test_a_record_finished_between_the_first_look_and_the_own_run_stays(lab, monkeypatch):
    look, finished = tracking._known, []

    def known(*asked: object) -> tuple[list[str], list[str]]:
        found = look(*asked)
        if not finished:
            finished.append(lab.left("FINISHED", IN_A_YEAR_MS))
        return found

    monkeypatch.setattr(tracking, "_known", known)
    lab.meanwhile = lambda own: pytest.fail("it was there")
    client = mlflow.MlflowClient(lab.address)
    assert tracking.write(REPORT, STORE, client) == finished[0]


def test_two_that_finish_at_once_keep_the_same(lab, monkeypatch):
    filled, both = Barrier(2, timeout=60), Barrier(2, timeout=60)
    lab.meanwhile = lambda own: filled.wait()  # neither finds the other's whole before it begins

    class Together(mlflow.MlflowClient):
        def set_terminated(self, *given: object) -> None:
            super().set_terminated(*given)
            both.wait()

    with ThreadPoolExecutor(2) as threads:
        begun = [threads.submit(tracking.write, REPORT, STORE, Together(lab.address)) for _ in range(2)]
        first, second = (one.result() for one in begun)
    assert first == second
    assert lab.kept() == {first: "FINISHED"}


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("", "http://mlflow:5000"),
        ("http://127.0.0.1:5300", "http://127.0.0.1:5300"),
        ("https://me:secret@lab.example/mlflow/", "https://lab.example/mlflow"),
    ],
)
def test_a_link_names_the_address_that_a_browser_knows(monkeypatch, page, shown):
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="7", run_id="c0ffee"))
    view = "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=aaaaaaaa"
    client = SimpleNamespace(tracking_uri="http://mlflow:5000", get_run=lambda run_id: run)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: client)
    monkeypatch.setattr(tracking, "write", lambda *_: run.info.run_id)
    monkeypatch.setenv("SSL_BACKDOOR_MLFLOW_PAGE", page)
    assert tracking.record.fn(REPORT, None) == shown + view


@pytest.mark.slow
def test_a_database_is_made_ahead_and_one_that_another_shell_made_meanwhile_is_kept(tmp_path, monkeypatch):
    file = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    tracking.open_database_ahead()
    mlflow.MlflowClient().create_experiment("somebody's")
    tracking._make_database(file)
    assert {one.name for one in mlflow.MlflowClient().search_experiments()} == {"Default", "somebody's"}
    assert [one.name for one in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("recipe", ["x\x1b[2J\ny at http://me:pa55@host/x", f"{'long' * 100}.py:mine"])
def test_a_recipes_own_name_is_clean_and_fits(lab, monkeypatch, recipe):
    spec = SPEC.model_copy(update={"recipe": recipe}).model_dump(mode="json")
    store = SimpleNamespace(manifest=lambda _: SimpleNamespace(spec=spec))
    monkeypatch.setattr(tracking, "_fill", lambda *_: None)
    client = mlflow.MlflowClient(lab.address)
    run = client.get_run(tracking.write(REPORT, store, client))
    experiment = client.get_experiment(run.info.experiment_id)
    shown = [experiment.name, run.info.run_name, run.data.tags["recipe"]]
    assert all(name.isprintable() and "pa55" not in name for name in shown)
    assert all(len(name) <= 250 for name in shown[:2])
    assert run.info.run_name.endswith(KEY[:8])
    assert tracking.write(REPORT, store, client) == run.info.run_id
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: client)
    assert tracking.find_recorded([recipe]) == {KEY}


def test_a_report_of_a_plug_in_that_is_not_loaded_is_not_called_damaged(lab):
    spec = SPEC.model_dump(mode="json")
    spec["runs"][0]["attack"]["kind"] = "somebodys"
    store = SimpleNamespace(manifest=lambda _: SimpleNamespace(spec=spec))
    report = SimpleNamespace(stage="report", key=KEY)
    with pytest.raises(StoreError, match=r"^report/a{12} was made with other specs .* --plugin that is to be given"):
        tracking.write(report, store, lab.client)


def test_an_experiment_opens_as_the_training_of_models_also_one_of_before(lab):
    kinds = []
    for _ in range(2):
        tracking._experiment(lab.client, "demo")
        tracking._experiment(lab.client, "another")
        kinds.append([lab.client.get_experiment_by_name(name).tags for name in ("demo", "another")])
    assert kinds == 2 * [2 * [{"mlflow.experimentKind": "custom_model_development"}]]


@pytest.mark.parametrize("times", [2, 99])
def test_what_another_record_writes_at_the_same_moment_is_written_again(lab, times):
    refused = []

    class Crowded(mlflow.MlflowClient):
        def set_experiment_tag(self, *asked):
            if len(refused) < times:
                refused.append(asked)
                raise mlflow.exceptions.MlflowException("(psycopg2.errors.UniqueViolation) duplicate key value")
            super().set_experiment_tag(*asked)

    with nullcontext() if times == 2 else pytest.raises(mlflow.exceptions.MlflowException, match="duplicate"):
        tracking._tag(Crowded(lab.address), lab.experiment, "kind", "one")
    assert lab.client.get_experiment(lab.experiment).tags == ({"kind": "one"} if times == 2 else {})
    assert len(refused) == min(times, 4)


def test_names_that_steer_a_terminal_are_written_as_clean_lines():
    (one,) = tracking._params({"attack": {"trigger": "x\x1b[2J\n y at http://me:pa55@host/x"}}, "runs.")
    assert (one.key, one.value) == ("runs.attack.trigger", "x [2J y at http://host/x")
