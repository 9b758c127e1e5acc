"""Fixtures shared by all tests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from services import ObjectStore


@pytest.fixture(scope="session")
def object_store() -> Iterator["ObjectStore"]:
    """A real SeaweedFS for the whole session. Give each test a prefix of its own; never stop this one."""
    from services import object_store_server

    with object_store_server() as server:
        yield server
