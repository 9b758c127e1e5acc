"""Schedules worked out by hand."""

import pytest

from flows.estimate.schedule import Job, makespan_s

DIAMOND = (Job(3), Job(5), Job(4, (0,)), Job(2, (0, 1)), Job(1, (2, 3)))
"""0 ends at 3 and 1 at 5; then 2 runs from 3 to 7 and 3 from 5 to 7; 4 from 7 to 8."""


@pytest.mark.parametrize(
    ("jobs", "num_devices", "expected"),
    [
        ((), 1, 0.0),
        ((Job(2), Job(3)), 1, 5.0),
        ((Job(2), Job(3)), 2, 3.0),
        ((Job(2), Job(3)), 1_000_000, 3.0),
        ((Job(4), Job(4), Job(4)), 2, 8.0),
        ((Job(2), Job(3, (0,)), Job(4, (1,))), 7, 9.0),
        (DIAMOND, 2, 8.0),
        (DIAMOND, 1, 15.0),
        ((Job(1), Job(1, (0, 0))), 1, 2.0),  # one input in two roles
        # First come, first served: the long one is ready last, though begun at 1 it would end at 10.
        ((Job(1), Job(6), Job(6), Job(9, (0,))), 2, 15.0),
    ],
)
def test_the_last_job_ends_when_it_should(jobs, num_devices, expected):
    assert makespan_s(jobs, num_devices) == expected
