"""Waiting for what has no event."""

import time


def wait_until(condition, *, timeout_s: float, what: str) -> None:
    """Poll ``condition`` until it is true; RuntimeError naming ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.02)
