"""A worker that waits until its last words have arrived holds its device meanwhile."""

import json
from pathlib import Path

from tests.support.cli_process import begin

PROGRAM = """
import json, os, time

import ray

from ssl_backdoor.events import log_event
from tasks import embedded_ray
from tasks.progress_actor import WorkerReporter

embedded_ray.start(1, log_to_driver=False)


@ray.remote(num_cpus=0)
class SlowProgressActor:
    def start_stage(self, title):
        pass

    def add_event(self, event):
        time.sleep(2.5)


@ray.remote(num_cpus=1)
def stage(reporter):
    began_s = time.time()
    with reporter.relay_events():
        log_event("begins", "begins", key="a")
    return os.getpid(), began_s, time.time()


actor = SlowProgressActor.remote()
print(json.dumps(ray.get([stage.remote(WorkerReporter(actor, title)) for title in ("first", "second")])))
"""


def test_the_next_stage_begins_in_the_same_process_when_the_last_has_ended(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = begin(tmp_path, program=program, PYTHONPATH=str(Path(__file__).parents[2]))
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    (first, first_began_s, first_ended_s), (second, second_began_s, _) = sorted(json.loads(out), key=lambda one: one[1])
    assert first_ended_s - first_began_s > 2
    assert second_began_s >= first_ended_s
    assert first == second
