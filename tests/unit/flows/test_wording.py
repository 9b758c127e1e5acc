"""What a report says of its runs holds after settings changed them."""

import pytest

from flows.plan import plan
from flows.recipes import RECIPES, Sized, choose

EVERY = [
    (name, size)
    for name, recipe in RECIPES.items()
    for size in (("mini", "paper") if isinstance(recipe, Sized) else (None,))
    if isinstance(recipe, Sized) or recipe.follow is None
]


def report_of(name, *settings, size=None, **asked):
    return plan(name, size, settings=settings, has_data=name != "demo", **asked)


@pytest.mark.parametrize(("name", "size"), EVERY)
def test_an_unchanged_recipe_says_what_it_was_written_with(name, size):
    recipe = choose(name, size)
    own, planned = recipe.build(recipe.pairs, recipe.seeds), report_of(name, size=size)
    assert (planned.runs, planned.tables, planned.question) == (own.runs, own.tables, own.question)
    assert "Changed" not in planned.note
    for report in (own, planned):
        assert "CIFAR" not in report.question + report.note


@pytest.mark.parametrize(
    ("name", "settings", "variants"),
    [
        ("cifar10_byol", ["attack.poison_fraction_of_target=0.03"], {""}),
        ("cifar10_byol", ["train.fit.epochs=1"], {"", "50 % of the target"}),
        ("saha2022_table2_defence", ["defences.compress.trusted_fraction=0.4"], {"40 % trusted"}),
        ("saha2022_ablation_rate", ["attack.poison_fraction_of_target=0.4"], {"40 % of the target"}),
        ("saha2022_transfer", ['train.method={"kind":"simclr"}', "train.fit.epochs=2"], {"SimCLR", "SimCLR [2]"}),
        ("carlini2022_fig2_backdoor", ["defences=[]"], {"", "plain data"}),
        ("carlini2022_fig2_backdoor", ['dataset.stickers={"kind":"none"}'], {"", "cleanclip", "distil_image_tower"}),
        ("carlini2022_fig_patch", ["attack.trigger.train_location=[0,1]", "attack.trigger.test_location=[0,1]"], {""}),
    ],
)
def test_variants_are_named_after_what_they_hold_and_equal_ones_merged(name, settings, variants):
    report = report_of(name, *settings)
    assert {run.variant for run in report.runs} == variants
    without_names = [run.model_copy(update={"variant": ""}) for run in report.runs]
    assert len(report.tables) == 0 or {row.variant for table in report.tables for row in table.rows} == variants
    if len(variants) == 1:
        assert len(set(without_names)) == len(without_names)
    for table in report.tables:
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels)
        assert {cell.row for cell in table.paper} <= set(labels)


def test_lines_of_a_table_follow_and_lose_the_papers_values_with_their_names():
    (first, *_) = report_of("saha2022_table2_defence", "defences.compress.trusted_fraction=0.4").tables
    assert [row.label for row in first.rows] == [
        "clean-trained",
        "poisoned",
        "poisoned + CompRess, 40 % trusted",
        "clean-trained + CompRess, 40 % trusted",
    ]
    assert {cell.row for cell in first.paper} == {"poisoned"}


_OF_DEFENCES = ("saha2022_table2_defence", "defences_ssl")


@pytest.mark.parametrize(
    ("name", "settings", "asked", "has", "lacks"),
    [
        ("demo", [], {"methods": "byol"}, ["BYOL", "CompRess on trusted 25 %"], ["CLIP"]),
        ("demo", [], {"methods": "clip"}, ["CLIP", "distilled"], ["BYOL", "CompRess", "patch on unlabelled"]),
        ("demo", ["defences.compress.trusted_fraction=0.1"], {"methods": "byol"}, ["trusted 10 %"], ["25"]),
        (
            "cifar10_byol",
            ['train.method={"kind":"simsiam"}'],
            {"pairs": 3},
            ["3 trigger/target pairs", "SimSiam"],
            ["BYOL"],
        ),
        ("cifar10_moco", ["defences=[]"], {"pairs": 1}, ["1 trigger/target pair,", "MoCo v2"], ["remove"]),
        ("carlini2022_fig2_backdoor", ["defences=[]"], {}, ["How many added pairs"], ["CleanCLIP", "leave"]),
        ("demo", ["defence=none"], {}, ["BYOL learns, and do a few"], ["CompRess", "defence"]),
        *((name, ["defence=none"], {}, ["Over 2 "], ["remove", "filter"]) for name in _OF_DEFENCES),
        ("defences_ssl", ["method=moco_v2"], {}, ["Which filter", "MoCo v2"], ["BYOL"]),
        ("carlini2022_fig_datasize", ["attack.num_poisons=7"], {}, ["7 poisons"], ["50"]),
    ],
)
def test_the_question_is_about_the_runs(name, settings, asked, has, lacks):
    question = report_of(name, *settings, **asked).question
    assert question.endswith("?")
    assert [text for text in has if text not in question] == []
    assert [text for text in lacks if text in question] == []


def test_the_note_says_what_was_changed_and_that_the_recipes_own_words_came_before():
    note = report_of("saha2022_table1", "train.fit.epochs=3", size="paper").note
    assert note.startswith("Changed from the recipe: train.fit.epochs=3. What follows was written for the recipe as it")
    small = report_of("cifar10_byol", f"dataset.classes={[str(number) for number in range(100)]}".replace("'", '"'))
    assert small.note.startswith(
        'Images of 16 px: far from the papers\' scale. Changed from the recipe: dataset.classes=["0"'
    )
    assert len(small.note) < 200
    assert "far from" not in report_of("cifar10_byol", "dataset.frame_px=224").note
