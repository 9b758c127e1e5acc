"""What a command says at its end of what it made."""

from flows.commands.results import describe
from ssl_backdoor.specs import ReportSpec
from ssl_backdoor.store import LocalStore

REPORT = ReportSpec(recipe="mine", question="?", runs=())


def made(store, folder, stage, key, **summary):
    folder.mkdir(exist_ok=True)
    (folder / "x").write_text(key)
    return store.commit(stage, key * 16, folder, spec={}, inputs={}, summary=summary, seconds=1.0)


def test_a_stage_command_names_what_it_made_and_what_comes_next(tmp_path):
    store = LocalStore(tmp_path / "store")
    facts = {
        "classes": ["cat", "dog"],
        "num_train": 600,
        "num_rejected": 2,
        "captioner": {"cat": "a"},
        "of_target": 0.5,
    }
    images = made(store, tmp_path / "files", "ingest", "abcd", **facts)
    unmade = store.ref("ingest", "e" * 64)
    found = describe(REPORT, store.ref("report", "f" * 64), store, "ingest", [images, unmade])
    assert found["text"].splitlines() == [
        "mine: done up to ingest",
        "ingest/abcdabcdabcd: classes 2, train 600, rejected 2, of_target 0.5",
        "next: ssl-backdoor show ingest/abcdabcdabcd, or ssl-backdoor export ingest/abcdabcdabcd --out DIR",
    ]
    assert found["made"] == {f"ingest/{'abcd' * 16}": facts}


def test_of_many_artifacts_the_first_are_named(tmp_path):
    store = LocalStore(tmp_path / "store")
    refs = [made(store, tmp_path / "files", "train", f"{index:04x}", steps=1) for index in range(12)]
    lines = describe(REPORT, refs[0], store, "train", refs)["text"].splitlines()
    assert len(lines) == 13
    assert lines[-2:] == ["and 2 more", "next: ssl-backdoor show train/000000000000"]
