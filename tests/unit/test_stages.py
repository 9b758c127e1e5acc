"""One place decides whether a stage's artifact is reused."""

from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec
from ssl_backdoor.stages import Finished, IngestStage, StageCall, find_finished, run_stage
from ssl_backdoor.store import LocalStore


def test_an_artifact_is_reused_from_the_moment_it_is_finished(tmp_path):
    source = ScenesSourceSpec(num_classes=2, train_per_class=1, test_per_class=1, side_px=16)
    call, store = StageCall(IngestStage(dataset=DatasetSpec(source=source)), source="scenes"), LocalStore(tmp_path)
    assert find_finished(call, store) is None
    made = run_stage(call, store)
    assert not made.reused
    assert find_finished(call, store) == run_stage(call, store) == Finished(made.ref, reused=True)
