"""What a form or a schedule asks for becomes runs."""

from typing import Annotated, Any

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter, ValidationError

from flows.plan import AsInRecipeSpec, plan
from flows.run import _read_as, experiment
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.attacks.saha2022 import Saha2022UntargetedSpec
from ssl_backdoor.specs import AttackSpec, SimCLRSpec, TrainSpec


def test_zero_and_as_in_recipe_change_nothing():
    plain = plan("saha2022_table1", has_data=True)
    assert plan("saha2022_table1", "mini", pairs=0, seeds=0, specs={"train": AsInRecipeSpec()}, has_data=True) == plain


def test_a_whole_spec_takes_its_place_in_every_run():
    recipe = plan("cifar10_byol", pairs=2, has_data=True)
    other = recipe.runs[0].train.model_copy(update={"method": SimCLRSpec()})
    changed = plan("cifar10_byol", pairs=2, specs={"train": other, "defences": ()}, has_data=True)
    assert len(changed.runs) == len(recipe.runs)
    assert {(run.train, run.defences) for run in changed.runs} == {(other, ())}
    attack = Saha2022UntargetedSpec(trigger=recipe.runs[0].attack.trigger)
    one = plan("cifar10_byol", pairs=2, specs={"attack": attack}, settings=["variant="], has_data=True)
    assert [run.attack for run in one.runs] == [attack]  # pairs and fractions no longer differ


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"recipe": "dmeo"}, "no recipe 'dmeo'"),
        ({"recipe": "cifar10_byol"}, "needs --data PATH"),
        ({"recipe": "demo", "size": "mini"}, "single size"),
        ({"recipe": "demo", "pairs": 2}, "1 pair"),
        ({"recipe": "demo", "methods": "msf"}, "found msf"),
        ({"recipe": "demo", "seeds": 10**9}, "1000 seeds are the most"),
        ({"recipe": "demo", "has_data": True}, "leave --data out"),
        ({"recipe": "demo", "settings": ["train.fit.epochs=-1"]}, "greater than or equal to"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(asked, sentence):
    with pytest.raises(SpecError, match=sentence):
        plan(**asked)


def members(schema, place):
    """Field names of each member of the union at ``place``."""
    return [frozenset(schema["definitions"][one["$ref"].rpartition("/")[2]]["properties"]) for one in place["anyOf"]]


def test_the_form_can_tell_the_members_of_every_union_apart():
    """Prefect's form shows the first member that shares most fields with the value, and a bare editor for oneOf."""
    schema = parameter_schema(experiment.fn).model_dump()
    places = [*schema["properties"].values()]
    places += [field for one in schema["definitions"].values() for field in one.get("properties", {}).values()]
    assert not [place for place in places if "oneOf" in place]
    unions = [members(schema, place) for place in places if all("$ref" in one for one in place.get("anyOf", [{}]))]
    assert len(unions) > 8
    for union in unions:
        for later, fields in enumerate(union):
            assert not [one for one in union[:later] if fields <= one], union
    described = [name for name, field in schema["properties"].items() if not field.get("description")]
    assert described == []


@pytest.mark.parametrize(
    ("union", "value", "sentence"),
    [
        (
            TrainSpec,
            {"method": "byol", "fit": {"epoch": 3}},
            "fit.epoch: there is no such field (found 3); did",
        ),
        (AttackSpec, {"kind": "saha2022_targetd"}, "there is no kind 'saha2022_targetd'; did you mean saha2022_target"),
        (AttackSpec, {"kind": "saha2022_untargeted", "trigger": {"kind": "grid", "seeds": 1}}, "did you mean seed?"),
        (TrainSpec, {"method": "byol", "backbone": {"kind": "resnet", "depth": 9}}, "backbone.depth: Input should be"),
    ],
)
def test_a_form_tells_a_mistake_as_a_setting_does(union, value, sentence):
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Annotated[Any, _read_as(union)]).validate_python(value)
    assert sentence in str(refused.value)
