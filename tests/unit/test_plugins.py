"""Plug-ins: classes of a user's file in the families, in keys, and in other processes."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from ssl_backdoor import plugins
from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import artifact_key, canonical
from ssl_backdoor.poison.attacks.saha2022 import Saha2022UntargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import Attack, NoAttackSpec, built_in, members
from ssl_backdoor.specs.family import forget
from ssl_backdoor.stages import PoisonStage, StageCall

TINT = """
from typing import Literal
import numpy as np
from ssl_backdoor.specs import Stamped, Trigger

class TintSpec(Trigger):
    kind: Literal["tint"] = "tint"
    levels: int = 20

    def apply(self, images, seeds, frame, source=None):
        return Stamped(np.minimum(images, 255 - self.levels) + np.uint8(self.levels), None)

    def unseen(self, seed):
        return self.model_copy(update={"levels": seed % 200 + 1})
"""


@pytest.fixture
def tint(tmp_path):
    file = tmp_path / "tint.py"
    file.write_text(TINT)
    yield file
    for name in [name for name in plugins._loaded if name.endswith("_tint")]:
        forget(name)
        del plugins._loaded[name]


def with_tint() -> Attack:
    return Saha2022UntargetedSpec.model_validate({"trigger": {"kind": "tint", "levels": 30}})


def test_a_plug_in_s_classes_join_the_families(tint: Path):
    with pytest.raises(ValidationError, match="'tint' found using 'kind' does not match any of"):
        with_tint()
    plugins.load(str(tint))
    attack = with_tint()
    assert attack.trigger.levels == 30
    assert type(attack.trigger) is members("trigger")["tint"]
    assert type(attack.trigger) not in built_in("trigger")
    assert type(attack).model_validate(attack.model_dump(mode="json")) == attack
    assert type(attack).model_validate(canonical(attack)) == attack


def test_an_edited_file_makes_other_keys(tint: Path):
    def key() -> str:
        plugins.load(str(tint))
        return artifact_key("poison", PoisonStage(attack=with_tint(), seed=0), {})

    first, again = key(), key()
    tint.write_text(TINT + "# another word\n")
    assert first == again != key()
    tint.write_text(TINT)
    assert key() == first
    assert "source_sha256" not in str(canonical(Saha2022UntargetedSpec(trigger=GridTriggerSpec(size_px=3))))


def test_a_built_in_idea_has_no_digest_though_a_plug_in_imports_it_first(tint: Path):
    tint.write_text("import ssl_backdoor.evaluate.standard_probes" + TINT)
    code = (
        "import sys; from ssl_backdoor import plugins, specs; from ssl_backdoor.identity import canonical;"
        "plugins.load(sys.argv[1]); print(canonical(specs.EvaluationSpec(probes=['knn'])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tint)], capture_output=True, text=True)
    assert done.stdout == "{'probes': [{'kind': 'knn'}]}\n", done.stderr


def test_another_process_reads_a_call_without_the_file(tint: Path, tmp_path: Path):
    plugins.load(str(tint))
    call = StageCall(PoisonStage(attack=with_tint(), seed=0), title="with a tint")
    (tmp_path / "call").write_bytes(pickle.dumps(call))
    tint.unlink()
    code = (
        "import pickle, sys; call = pickle.loads(open(sys.argv[1], 'rb').read());"
        "print(call.key, call.title, call.spec.attack.trigger.levels)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "call")], capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1) == [call.key, "with a tint 30\n"], done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import nothing_of_the_name", r"line 1 cannot be loaded \(ModuleNotFoundError: No module"),
        ("a = 1\ndef b(:\n", r"line 2 cannot be loaded \(SyntaxError"),
        ("def f():\n    raise ValueError('no')\nf()", r"line 2 cannot be loaded \(ValueError: no\): fix it"),
        (TINT.replace('"tint"', '"grid"'), "trigger kind 'grid' of ssl_backdoor_plugin_tint.TintSpec is taken by"),
    ],
)
def test_a_plug_in_that_fails_is_told_in_one_sentence_and_leaves_nothing(tint: Path, text: str, sentence: str):
    tint.write_text(text)
    with pytest.raises(SpecError, match=sentence):
        plugins.load(str(tint))
    assert not any("tint" in str(member) for member in members("trigger").values())
    assert "ssl_backdoor_plugin_tint" not in sys.modules


@pytest.mark.parametrize("name", ["no/such/file.py", "no_such_module_here"])
def test_one_that_is_not_there_is_named(name: str):
    with pytest.raises(SpecError, match=name.replace(".", r"\.")):
        plugins.load(name)


def test_two_of_one_name_are_refused(tint: Path, tmp_path: Path):
    plugins.load(str(tint))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tint.py").write_text(TINT)
    with pytest.raises(SpecError, match="two plug-ins are named tint"):
        plugins.load(str(tmp_path / "other" / "tint.py"))


def test_a_module_is_loaded_by_its_name(tint: Path, monkeypatch):
    monkeypatch.syspath_prepend(tint.parent)
    module = tint.rename(tint.with_name("module_tint.py"))
    plugins.load("module_tint")
    assert members("trigger")["tint"].source_sha256
    assert module.exists()
    del sys.modules["module_tint"]


def test_a_module_that_was_imported_before_is_a_plug_in_all_the_same(tint: Path, monkeypatch):
    monkeypatch.syspath_prepend(tint.parent)
    tint.rename(tint.with_name("early_tint.py"))
    __import__("early_tint")
    assert not members("trigger")["tint"].source_sha256
    plugins.load("early_tint")
    assert members("trigger")["tint"].source_sha256
    del sys.modules["early_tint"]


@pytest.mark.parametrize("kind", [["grid"], {"a": 1}, None, 7])
def test_a_kind_that_is_no_word_is_refused_as_any_other(kind):
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        Saha2022UntargetedSpec.model_validate({"trigger": {"kind": kind}})


def test_a_member_of_another_family_is_refused():
    with pytest.raises(ValidationError, match="expected the fields of a trigger"):
        Saha2022UntargetedSpec.model_validate({"trigger": NoAttackSpec()})
