"""Fixtures shared by the tests of the S3 store."""

import os
import re

import pytest


@pytest.fixture
def environment(object_store, tmp_path, monkeypatch):
    """The AWS variables of the session's server, and a cache of this test's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    found = {**object_store.environment, "SSL_BACKDOOR_CACHE": str(tmp_path / "cache")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def prefix(request):
    """A place of the test's own in the session's bucket."""
    return "tests/" + re.sub(r"\W", "-", request.node.name)
