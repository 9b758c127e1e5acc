import json
from collections import Counter
from typing import get_args

import pytest
from PIL import Image

from flows.overrides import apply, only_methods, with_list
from flows.recipes import RECIPES, Recipe, Sized, choose
from ssl_backdoor import specs
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.specs import ReportSpec

SIZED = [name for name, recipe in RECIPES.items() if isinstance(recipe, Sized)]
FIGURES = [name for name in SIZED if name.startswith("carlini2022")]
TABLES = [name for name in SIZED if name.startswith("saha2022")]
SIZES = ("mini", "paper")
EVERY = [(name, size) for name in RECIPES if name != "own" for size in (SIZES if name in SIZED else (None,))]


@pytest.mark.parametrize(("name", "size"), EVERY)
def test_a_recipe_is_a_question_and_distinct_runs(name, size):
    recipe = choose(name, size)
    assert isinstance(recipe, Recipe)
    report = recipe.build(recipe.pairs, recipe.seeds)
    assert report.recipe == name
    assert report.question.endswith("?")
    assert len(set(report.runs)) == len(report.runs)
    assert ReportSpec.model_validate_json(report.model_dump_json()) == report


def test_pairs_and_seeds_only_add_runs():
    build = RECIPES["cifar10_byol"].build
    few, many = build(2, 1).runs, build(10, 3).runs
    assert set(few) < set(many)
    assert len(many) == 2 * 10 * 3
    assert Counter(run.attack.target_class for run in build(10, 1).runs if not run.variant) == dict.fromkeys(
        ("airplane", "automobile", "cat", "frog", "horse"), 2
    )


def test_a_size_is_asked_only_of_a_recipe_that_has_two():
    assert choose(SIZED[0]) == choose(SIZED[0], "mini") != choose(SIZED[0], "paper")
    with pytest.raises(SpecError, match="demo has a single size"):
        choose("demo", "mini")
    with pytest.raises(SpecError, match="carlini2022_fig_patch"):
        choose("carlini2022_fig_ptach")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_from_runs_that_differ_along_its_axis_alone(name, size):
    recipe = choose(name, size)
    report = recipe.build(recipe.pairs, recipe.seeds)
    assert report.recipe == name
    assert {run.attack.kind for run in report.runs} == {figure.attack for figure in report.figures}
    seeds = Counter(run.seed for run in report.runs)
    assert set(seeds) == set(range(recipe.seeds))
    assert len(set(seeds.values())) == 1  # every point has every model
    targets = {}
    for run in report.runs:
        if run.attack.kind == "carlini2022_backdoor":
            targets.setdefault(run.seed, set()).add((run.attack.trigger.seed, run.attack.target_class))
    assert all(len(one) == 1 for one in targets.values())  # and every model its own trigger and target
    shown = {measure for figure in report.figures for measure in figure.measures}
    assert {value.measure for figure in report.figures for value in figure.paper} <= shown


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TABLES)
def test_every_line_of_a_table_has_runs_that_differ_in_pair_and_seed_alone(name, size):
    recipe = choose(name, size)
    report = recipe.build(2, 2)
    assert (report.recipe, report.unit) == (name, "seed")
    variants = Counter(run.variant for run in report.runs)
    assert set(variants.values()) == {4}
    for table in report.tables:
        assert {row.variant for row in table.rows} <= set(variants)
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels)
        assert {cell.row for cell in table.paper} <= set(labels)
        for run in report.runs:
            if run.variant in {row.variant for row in table.rows}:
                assert table.probe in run.evaluation.probe_names(run.train.backbone)
    for variant in variants:
        here = [run for run in report.runs if run.variant == variant]
        assert len({(run.dataset, run.train, run.defences, run.evaluation, run.probe_on) for run in here}) == 1
        assert len({(run.attack, run.seed) for run in here}) == 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["defences_ssl", "defences_clip"])
def test_a_matrix_of_defences_trains_each_undefended_encoder_once(name, size):
    report = choose(name, size).build(2, 2)
    defences = {run.defences[0] for run in report.runs}
    attacks = {(run.attack, run.seed) for run in report.runs}
    cells = Counter((run.attack, run.seed, run.defences) for run in report.runs)
    assert set(cells.values()) == {1}
    assert len(cells) == len(attacks) * len(defences)
    assert len({(run.dataset, run.train, run.evaluation) for run in report.runs if run.attack.trigger}) == 1
    rows = [row.variant for table in report.tables for row in table.rows]
    assert set(rows) <= {run.variant for run in report.runs}
    filters = [one for one in defences if isinstance(one, specs.Filter)]
    assert {one.budget for one in filters} == {0.1}
    assert {"k-dist", "DAO", "PatchSearch, search only", "PatchSearch + classifier, trusted images"} <= {
        one.label for one in filters
    }
    if name == "defences_clip":
        assert {"fine_tuning", "cleanclip", "par", "distil_image_tower", "roclip", "safeclip"} <= {
            one.kind for one in defences
        }
    else:
        assert {"i_cutmix", "localized_cropping", "blur_luminance"} <= {one.kind for one in defences}


def test_methods_leave_runs_and_lines_out():
    report = only_methods(choose("saha2022_table1").build(1, 1), "mae, byol")
    assert {run.train.method.kind for run in report.runs} == {"mae", "byol"}
    assert [[row.label for row in table.rows] for table in report.tables] == [["BYOL", "MAE"]] * 2
    assert {cell.row for cell in report.tables[0].paper} == {"BYOL", "MAE"}
    with pytest.raises(SpecError, match=r"--methods expects some of byol,.*found mea"):
        only_methods(report, "mea")


def test_nothing_recalled_is_shown_as_read():
    reports = [choose(name, size).build(1, 1) for name in SIZED for size in SIZES]
    drawn = [value for report in reports for figure in report.figures for value in figure.paper]
    told = [cell for report in reports for table in report.tables for cell in table.paper]
    assert drawn
    assert told
    values = drawn + told
    assert values
    assert not any(value.is_verified for value in values)


def test_carlini_at_paper_scale_is_the_papers():
    recipe = choose("carlini2022_fig2_targeted", "paper")
    report = recipe.build(recipe.pairs, recipe.seeds)
    assert Counter(run.attack.num_poisons for run in report.runs) == {2**power: 32 for power in range(10)}
    run = report.runs[0]
    assert run.attack.targets.num_targets == 1
    assert (run.train.backbone.config, run.train.fit.batch_size, run.train.fit.epochs) == ("RN50", 1024, 30)
    optimizer = run.train.fit.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay) == ("sgd", 2e-4, 0.02)
    backdoor = choose("carlini2022_fig_patch", "paper").build(1, 1).runs
    sides = {round(224 * run.attack.trigger.size_frac) for run in backdoor}
    assert {4, 16} <= sides
    assert {run.attack.trigger.train_location for run in backdoor} == {(0.0, 0.0), (0.0, 1.0)}


def test_every_method_has_the_head_of_its_authors_at_paper_scale():
    tables = choose("saha2022_table1", "paper").build(1, 1).tables
    own = {row.label: table.probe for table in tables if "_own_" in table.name for row in table.rows}
    assert own == {
        "MoCo v2": "linear_sgd_1",
        "MSF": "linear_sgd_1",
        "BYOL": "linear_adam_1",
        "Jigsaw": "linear_layer4_1",
        "RotNet": "linear_layer4_1",
        "MAE": "fine_tune_1",
    }
    assert {cell.row: table.probe for table in tables for cell in table.paper} == own
    run = choose("saha2022_table2_defence", "paper").build(1, 1).runs[0]
    assert next(iter(run.evaluation.probes)).heads(run.train.backbone) == ("knn_k1", "knn_k50")


def test_clip_at_paper_scale_spares_gains_and_has_its_own_mean():
    for name in ("carlini2022_fig2_backdoor", "carlini2022_fig_modelsize"):
        for run in choose(name, "paper").build(1, 1).runs:
            assert (run.train.backbone.normalisation, run.train.fit.optimizer.decays) == ("clip", "matrices")
            assert (run.dataset.resident_filter, run.evaluation.resize_px > 0) == ("bilinear", True)
    fits = [d.fit for d in (choose("carlini2022_fig2_backdoor", "paper").build(1, 1).runs[-2].defences)]
    assert [(fit.schedule.warmup_steps, fit.views.crop_scale, fit.views.flip_p) for fit in fits] == [
        (50, (1.0, 1.0), 0.0)
    ]


def test_what_is_not_the_papers_is_named():
    """Each deviation that stays is in the note that is shown first."""
    saha, carlini = (choose(name, "paper").build(1, 1).note for name in ("saha2022_table1", "carlini2022_fig_patch"))
    for word in ("256 px", "seeded grids", "jpeg75_poisons", "torchvision's kernel", "four groups", "neighbours"):
        assert word in saha, word
    for word in ("projection of colours", "incomplete batch", "RandAugment", "random ones", "last one is shown"):
        assert word in saha, word
    for word in ("patch pixels", "at random", "held-out split", "50,000", "256 px", "width of RN50", "AutoAugment"):
        assert word in carlini, word
    assert "not known here" in choose("saha2022_untargeted", "paper").build(1, 1).note


def test_mini_patches_are_whole_pixels():
    for name in FIGURES:
        for run in choose(name, "mini").build(10, 4).runs:
            if run.attack.kind == "carlini2022_backdoor":
                assert (16 * run.attack.trigger.size_frac).is_integer()


def test_the_demo_points_to_the_evidence():
    report = RECIPES["demo"].build(1, 1)
    assert "no evidence" in report.note
    assert "cifar10_byol" in report.note
    assert {run.attack.kind for run in report.runs} == {
        "saha2022_targeted", "carlini2022_targeted", "carlini2022_backdoor"
    }  # fmt: skip


def test_paper_scale_is_the_papers():
    runs = choose("saha2022_table2_defence", "paper").build(10, 1).runs
    moco = runs[0]
    assert len(moco.dataset.classes) == 100
    assert (moco.train.backbone.depth, moco.train.backbone.stem) == (18, "imagenet")
    fit, method = moco.train.fit, moco.train.method
    assert (fit.epochs, fit.batch_size, fit.bn_groups, fit.schedule) == (200, 256, 2, specs.CosineSpec(per="epoch"))
    assert (fit.optimizer.lr, fit.optimizer.sgd_momentum, fit.optimizer.weight_decay) == (0.06, 0.9, 1e-4)
    assert (method.queue_size, method.embedding_dim, method.temperature, method.ema_decay) == (65_536, 128, 0.2, 0.999)
    assert (moco.attack.trigger.size_px, moco.attack.poison_fraction_of_target) == (50, 0.5)
    assert moco.attack.trigger.train_location == (0.25, 0.75)
    methods = {run.variant: run.train for run in choose("saha2022_table1", "paper").build(1, 1).runs}
    byol = methods["BYOL"]
    assert (byol.fit.batch_size, byol.fit.optimizer.lr, byol.fit.views.grey_p) == (512, 2e-3, 0.1)
    assert byol.fit.schedule == specs.MilestonesSpec(milestones=(150, 175), factor=0.2, warmup_steps=500)
    msf, jigsaw, rotnet = (methods[name] for name in ("MSF", "Jigsaw", "RotNet"))
    assert (msf.method.queue_size, msf.method.neighbours, msf.method.ema_decay, msf.fit.optimizer.lr) == (
        128_000, 5, 0.99, 0.05
    )  # fmt: skip
    assert (byol.method.heads_see, byol.fit.bn_groups, msf.fit.bn_groups) == ("batch", 4, 4)
    assert (jigsaw.fit.optimizer.decays, jigsaw.fit.views.crop, jigsaw.fit.views.flip_p) == ("matrices", "fixed", 0.0)
    assert (jigsaw.fit.views.size_px, jigsaw.method.tile_px, jigsaw.method.num_permutations) == (255, 64, 2000)
    assert jigsaw.fit.schedule == specs.MilestonesSpec(milestones=(30, 60, 90, 100), factor=0.1)
    assert (rotnet.fit.epochs, rotnet.fit.batch_size, rotnet.fit.optimizer.lr) == (105, 128, 0.05)
    assert [run.defences[0].trusted_fraction for run in runs[::10]] == [0.25, 0.1, 0.05]
    (defence,) = moco.defences
    assert (defence.num_queues, defence.queue_size, defence.temperature, defence.fit.epochs) == (2, 128_000, 0.04, 130)


def test_set_reaches_every_run_and_equal_runs_are_kept_once():
    report = apply(RECIPES["cifar10_byol"].build(2, 1), ["train.fit.epochs=3", 'dataset.classes=["cat","dog"]'])
    assert {run.train.fit.epochs for run in report.runs} == {3}
    assert {run.dataset.classes for run in report.runs} == {("cat", "dog")}
    once = apply(
        report, ["variant=", "attack.trigger.seed=1", "attack.target_class=cat", "attack.poison_fraction_of_target=1.0"]
    )
    assert len(once.runs) == 1


def test_set_leaves_alone_runs_that_lack_the_field():
    before = RECIPES["demo"].build(1, 1).runs
    after = apply(RECIPES["demo"].build(1, 1), ["defences.compress.queue_size=64", "attack.num_poisons=3"]).runs
    assert [one.queue_size for run in after for one in run.defences if one.kind == "compress"] == [64]
    assert [run.attack.num_poisons for run in after if "carlini" in run.attack.kind] == [3, 3]
    assert [run.defences for run in after[1:]] == [run.defences for run in before[1:]]
    assert after[0].attack == before[0].attack


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.fit.epoch=3", "epochs"),
        ("trian.fit.epochs=3", "train"),
        ("train.fit.epochs.x=3", "epochs"),
        ("train.fit.epochs", "path=value"),
        ("attack.poison_fraction_of_target=1.5", "1.5"),
        ("train.fit.epochs=many", "many"),
        ("dataset.classes=@nowhere.txt", "nowhere.txt"),
        ('attack.trigger={"kind":"image","file":"nowhere.png","size_px":4}', "nowhere.png"),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting, expected):
    with pytest.raises(UserError) as caught:
        apply(RECIPES["demo"].build(1, 1), [with_list(setting)])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_from_files_and_digests_of_triggers(tmp_path):
    (tmp_path / "classes.txt").write_text("# two\ncat\n\ndog\n")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "patch.png")
    trigger = json.dumps({"kind": "image", "file": str(tmp_path / "patch.png"), "size_px": 4})
    report = apply(
        RECIPES["cifar10_byol"].build(1, 1),
        [with_list(f"dataset.classes=@{tmp_path}/classes.txt"), f"attack.trigger={trigger}"],
    )
    assert report.runs[0].dataset.classes == ("cat", "dog")
    known = apply(RECIPES["cifar10_byol"].build(1, 1), ["dataset.classes=@imagenet100_a"])
    assert len(known.runs[0].dataset.classes) == 100
    assert len(report.runs[0].attack.trigger.sha256) == 64


def test_no_member_of_a_union_hides_another():
    """Prefect's form picks the member that shares most field names: none may equal, or hold all of, a later one's."""
    closed = (specs.SourceSpec, specs.OptimizerSpec, specs.ScheduleSpec, specs.BackboneSpec, specs.ProbeOnSpec)
    unions = [get_args(get_args(union)[0]) for union in closed]
    families = [specs.built_in(family) for family in ("trigger", "attack", "method", "defence")]
    for union in (*unions, *families):
        assert len(union) > 1
        members = [set(member.model_fields) for member in union]
        for index, fields in enumerate(members):
            for other, later in zip(union[index + 1 :], members[index + 1 :], strict=True):
                assert not fields >= later, (union[index], other)


def test_tables_follow_the_probes_that_are_asked_for():
    report = choose("saha2022_table1", "mini").build(1, 1)
    asked = apply(report, ['evaluation.probes=["knn","linear_adam"]', "evaluation.label_fractions=[0.5]"])
    assert [(table.name, table.probe) for table in asked.tables] == [
        ("table1_knn", "knn"),
        ("table1_linear_adam_50", "linear_adam_50"),
    ]
    assert [table.probe for table in apply(report, ["train.fit.epochs=1"]).tables] == ["linear_100", "knn"]
    layers = apply(only_methods(report, "rotnet"), ['evaluation.probes=["linear_layers"]'])
    names = [table.probe for table in layers.tables]
    assert names == [f"linear_layer{index}_{share}" for index in range(4) for share in (1, 10, 100)]
