"""Which errors are worth a second attempt."""

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, NoCredentialsError
from prefect.states import Failed

from ssl_backdoor.errors import DataError, SourceAwayError, SpecError, StoreAwayError, StoreError, TrainingError
from ssl_backdoor.store.s3 import S3Store
from tasks.stages import TASKS


def answer(status: int) -> ClientError:
    return ClientError({"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    return S3Store("s3://bucket/lab")


@pytest.mark.parametrize(
    "error",
    [
        answer(503),
        answer(500),
        answer(429),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        ConnectTimeoutError(endpoint_url="http://127.0.0.1:1"),
    ],
)
def test_an_object_store_that_does_not_answer_is_away(store, error):
    with pytest.raises(StoreAwayError), store.objects():
        raise error


@pytest.mark.parametrize("error", [answer(403), answer(404), answer(400), NoCredentialsError()])
def test_one_that_refuses_is_not(store, error):
    with pytest.raises(StoreError) as caught, store.objects():
        raise error
    assert not isinstance(caught.value, StoreAwayError)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (StoreAwayError("cannot reach it"), True),
        (SourceAwayError("cannot reach the data"), True),
        (StoreError("disk full"), False),
        (SpecError("no such class"), False),
        (DataError("no images"), False),
        (TrainingError("the loss is not finite"), False),
        (RuntimeError("what is this"), False),
    ],
)
def test_only_a_store_that_is_away_is_tried_again(error, again):
    for stage in TASKS.values():
        assert stage.retry_condition_fn is not None
        assert stage.retry_condition_fn(stage, None, Failed(data=error)) is again


def test_pauses_grow():
    for stage in TASKS.values():
        pauses = stage.retry_delay_seconds
        assert pauses == sorted(pauses)
        assert sum(pauses[:3]) <= 60
