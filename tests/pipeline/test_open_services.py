"""The services, and a run of theirs that starts Ray for itself, let nobody in but their user."""

import time

import pytest

from tests.support import open_ports
from tests.support.command_server import TINY_SETTINGS
from tests.support.service_stack import is_over

pytestmark = [pytest.mark.services, pytest.mark.slow]
SMALL = ("dataset.source.train_per_class=16", "train.fit.batch_size=16", "defences.*.fit.batch_size=16")
SETTINGS = (*TINY_SETTINGS, *SMALL)


def test_the_services_and_a_run_that_starts_its_own_ray_refuse_strangers(stack):
    parameters = {"methods": "byol", "settings": SETTINGS, "until": "train"}
    run = stack.queue("experiment/demo", parameters, {"RAY_ADDRESS": ""})
    seen = open_ports.Seen()
    while not is_over(stack.api(f"flow_runs/{run}")):
        seen.look(each.process.pid for each in stack.members())
        time.sleep(1)
    seen.close()
    assert stack.ended(run, timeout_s=1)[0]["state"]["type"] == "COMPLETED"
    assert seen.outside == set()
    rays = [title for title in seen.listened.values() if title.startswith("gcs_server")]
    assert len(rays) == 2, "the cluster's and the run's own"
    numbers = stack.config.ports
    # A page that asks for the password, one that tells how many volumes there are, and a count of chores done.
    told = {"prefect": ["GET /"], "s3_master": ["GET /"], "s3_admin": ["GET /metrics"]}
    assert seen.answers == {numbers[name]: answers for name, answers in told.items()}
