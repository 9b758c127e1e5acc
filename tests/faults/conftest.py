"""Fixtures shared by the tests of the S3 store."""

import re

import pytest


@pytest.fixture
def prefix(request):
    """A place of the test's own in the session's bucket."""
    return "tests/" + re.sub(r"\W", "-", request.node.name)
