"""Waiting for what has no event."""

import time


def wait_until(condition, *, timeout_s: float, what: str) -> None:
    """Poll ``condition`` until it is true; RuntimeError naming ``what`` after ``timeout_s``.

    One that takes long is asked less often: asking takes the processor from what is waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked_s = time.monotonic()
        if condition():
            return
        now_s = time.monotonic()
        if now_s > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(min(1.0, max(0.02, 9 * (now_s - asked_s))))
