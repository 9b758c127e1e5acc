"""boto3's client as this project asks it, and its errors in one sentence each: for the store and for data on S3."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as EndpointError
from botocore.loaders import create_loader

from ssl_backdoor.errors import StoreError, UserError

TRIES = 8  # of one request, with growing pauses: an outage of up to half a minute or so is bridged
BODY_TRIES = 3  # of an answer's body, where the client itself tries no more
TIMEOUT_S = 20.0  # without a byte
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Asked directly, whatever proxy the environment names."""
_RIGHTS = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject (and s3:ListBucket: without it a missing object is refused too)",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_NO_ANSWER = (EndpointError, HTTPClientError)
_FAILURES = (BotoCoreError, ClientError, Boto3Error)


class AlteredError(StoreError):
    """An object's content does not have the digest it should have."""


_BROKEN_BODY = (AlteredError, FlexibleChecksumError, IncompleteReadError, ResponseStreamingError)
T = TypeVar("T")


@cache
def _loader(data_path: str | None) -> Any:
    """What reads botocore's descriptions of S3 and its endpoints, megabytes of JSON: once for all clients."""
    return create_loader(data_path)


def make_client(tries: int, **more: Any) -> Any:
    """A boto3 client from the standard AWS chain that makes each request up to ``tries`` times."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": tries},
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=TIMEOUT_S,
        **more,
    )
    try:
        core = botocore.session.get_session()
        core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
        session = boto3.session.Session(botocore_session=core)
        client = session.client("s3", region_name=session.region_name or "us-east-1", config=config)
        if "proxies" not in more and urlsplit(client.meta.endpoint_url).hostname in _LOOPBACK:
            return make_client(tries, **more, proxies={})
        return client
    except (BotoCoreError, ValueError) as error:
        raise StoreError(
            f"cannot set up S3 access ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL, AWS_PROFILE and the AWS configuration files"
        ) from error


def read_whole(read: Callable[[], T]) -> T:
    """What ``read`` returns, tried again where the body of an answer broke off or came altered."""
    for _ in range(BODY_TRIES - 1):
        with contextlib.suppress(*_BROKEN_BODY):
            return read()
    return read()


@contextlib.contextmanager
def translate_s3_errors(
    client: Any, uri: str, error_type: type[UserError], away_type: type[UserError]
) -> Iterator[None]:
    """Turn boto3's exceptions about ``uri`` into one sentence, without the server's text (secrets).

    Raises:
        ``away_type``: no answer, or one that asks for patience.
        ``error_type``: anything else.
    """
    try:
        yield
    except _FAILURES as error:
        cause = _root_cause(error)
        raise (away_type if _is_away(cause) else error_type)(_sentence(client, uri, cause)) from error


def _sentence(client: Any, uri: str, error: BaseException) -> str:
    address = urlsplit(client.meta.endpoint_url)
    place = f"{uri} at {address.scheme}://{address.netloc.rpartition('@')[2]}"
    if isinstance(error, _NO_CREDENTIALS):
        return f"no credentials for {place}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, _NO_ANSWER):
        return f"cannot reach {place}; check AWS_ENDPOINT_URL and that the object store runs"
    if not isinstance(error, ClientError):
        return f"cannot use {place} ({type(error).__name__}); check the AWS settings and try again"
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return f"expected the bucket of {place}, found none; create it or name another"
    if code == "RequestTimeTooSkewed":
        return (
            f"expected the clock of this machine to be that of {place} within 15 minutes, found it further off; "
            "set the clock and run again"
        )
    # Other servers name nothing: without a body the code is the status. Of object stores a 403 may have none.
    if code == "401" or (error.operation_name == "PutObject" and code in ("404", "405")):
        return f"{place} answers {code}, as no object store does; check AWS_ENDPOINT_URL"
    if status == 501:
        return (
            f"{place} does not know what {error.operation_name} asks for ({code}): it is no object store (check "
            "AWS_ENDPOINT_URL), or has no conditional writes (If-None-Match; AWS S3, SeaweedFS, MinIO and Ceph do)"
        )
    if status in (401, 403):
        right = _RIGHTS.get(error.operation_name, error.operation_name)
        return (
            f"{place} refuses these credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their "
            f"right to {right} on the bucket"
        )
    if status == 404:
        return f"expected an object in {place}, found it gone; delete the artifact it belongs to and run again"
    return f"{place} answered {code} ({status}); try again, or look at the object store's log"


def _root_cause(error: BaseException) -> BaseException:
    """The root cause of errors that boto3's transfers wrap."""
    if isinstance(error, RetriesExceededError):
        return cast(BaseException, error.last_exception)
    return error.__context__ if isinstance(error, Boto3Error) and error.__context__ else error


def _is_away(error: BaseException) -> bool:
    """Whether the same may succeed later: no answer, one cut short, or one that asks for patience."""
    if isinstance(error, ClientError):
        return status_of(error) == 429 or (status_of(error) >= 500 and status_of(error) != 501)
    return isinstance(error, (*_NO_ANSWER, IncompleteReadError, ResponseStreamingError))


def code_of(error: ClientError) -> str:
    """The name of what went wrong; the status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", "no code"))


def status_of(error: ClientError) -> int:
    """Of the answer over HTTP; 0 where there was none."""
    return cast(int, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
