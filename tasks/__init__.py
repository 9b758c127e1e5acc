"""Adapters: one Prefect task per stage; the only Ray code; the only MLflow code."""

import os

from tasks.loopback import around_proxies

os.environ.update(around_proxies(os.environ))
# Ray reads it at import: its own handler of SIGTERM would print a stack and abort a flow that is asked to end.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# Errors of tasks that nobody waits for, such as imports ahead of time, are not reported; a stage's failure is.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
