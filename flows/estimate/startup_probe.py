"""What a run does before its first stage and nothing else: ``python -m flows.estimate.startup_probe``.

Prints the time at which it was ready, by the clock that all processes share; or, with exit code 1, the error.
"""

import importlib
import sys
import time

from flows import settings
from tasks import embedded_prefect


def main() -> int:
    """The exit code."""
    settings.embed()
    embedded_prefect.start()
    importlib.import_module("flows.run")  # a second or two, while the server starts
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with embedded_prefect.use_server(), get_client(sync_client=True) as client:
            client.hello().raise_for_status()
            print(time.perf_counter())
    except httpx.HTTPError as error:
        print(type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
