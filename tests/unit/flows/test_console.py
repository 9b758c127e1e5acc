"""Progress where stderr is a log."""

import io

from flows.console import Lines
from ssl_backdoor.progress import Progress


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_a_line_now_and_then_with_rate_and_time_left() -> None:
    out, clock = io.StringIO(), _Clock()
    lines = Lines(out, every_s=30.0, clock=clock)
    for clock.now_s, done in ((0.0, 1_000), (10.0, 2_000), (20.0, 3_000), (40.0, 5_000)):
        lines("train suspect", Progress(done, 11_000, "images", "loss 5.1"))
    assert out.getvalue().split(" ", 1)[1] == (
        "train suspect: 5,000 of 11,000 images, 100 images/s, 0:01:00 left, loss 5.1\n"
    )


def test_stages_that_ended_or_stand_still_are_not_told_again() -> None:
    out, clock = io.StringIO(), _Clock()
    lines = Lines(out, every_s=30.0, clock=clock)
    lines("poison", Progress(5, 5, "images"))
    lines("all stages", Progress(1, 9, "stages"))
    clock.now_s = 31.0
    lines("all stages", Progress(2, 9, "stages"))
    clock.now_s = 62.0
    lines("train", Progress(1, 2, "images"))
    told = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert told == ["all stages: 2 of 9 stages, 0:03:37 left", "train: 1 of 2 images"]
