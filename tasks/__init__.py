"""Adapters: one Prefect task per stage; the only Ray code; the only MLflow code."""

import os

# Ray reads it at import: its own handler of SIGTERM would print a stack and abort a flow that is asked to end.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# What nobody waited for, such as imports ahead of time when a flow ends early, is no news; a stage's failure is told.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
