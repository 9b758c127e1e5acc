"""The record of a report in MLflow: where people find it."""

from types import SimpleNamespace

import pytest

from tasks import tracking
from tasks.tracking import mlflow


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
    client = SimpleNamespace(tracking_uri="http://mlflow:5000", get_run=lambda run_id: run)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: client)
    monkeypatch.setattr(tracking, "write", lambda *_: run.info.run_id)
    monkeypatch.setenv("SSL_BACKDOOR_MLFLOW_PAGE", page)
    assert tracking.record.fn(None, None) == f"{shown}/#/experiments/7/runs/c0ffee"
