"""Stand-ins for models along an axis: only the numbers a test needs."""

import numpy as np
import pyarrow as pa
from report_fakes import NO_PREDICTIONS, measurements, wilson

from ssl_backdoor.defences.cleanclip import CleanCLIPSpec
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.report.frame import EvaluatedModel
from ssl_backdoor.specs import (
    CLIPSpec,
    DatasetSpec,
    FigureSpec,
    OpenCLIPSpec,
    PaperValue,
    RunSpec,
    TargetsSpec,
    TrainSpec,
)
from ssl_backdoor.tables import SIMILARITY

CLEAN = ("control", "distilled_control")
SUCCESS = FigureSpec(
    name="success",
    title="Success by poisons",
    attack="carlini2022_targeted",
    axis="num_poisons",
    measures=("targeted_success/zero_shot", "targeted_success/linear_100"),
    paper=(PaperValue(x=3, measure="targeted_success/zero_shot", value=0.4),),
)
RATE = FigureSpec(
    name="rate",
    title="Rate by poisons",
    attack="carlini2022_backdoor",
    axis="num_poisons",
    measures=("attack_success_rate/zero_shot",),
)
SIMILAR = FigureSpec(
    name="similar",
    title="Similarity",
    attack="carlini2022_backdoor",
    axis="similarity",
    measures=("similarity_triggered/features", "similarity_clean/features"),
    paper=(PaperValue(x=300, measure="similarity_triggered/features", value=0.78),),
)


def run_of(attack, seed=0, variant="", defence=None, dataset=None):
    return RunSpec(
        dataset=dataset or DatasetSpec(frame_px=16),
        attack=attack,
        train=TrainSpec(method=CLIPSpec(), backbone=OpenCLIPSpec()),
        defences=() if defence is None else (defence,),
        seed=seed,
        variant=variant,
    )


def targeted_run(num_poisons, seed=0, pairs=4, variant=""):
    attack = Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=pairs), num_poisons=num_poisons)
    return run_of(attack, seed, variant)


def backdoor_run(num_poisons, seed=0, variant="", defence=None, train_per_class=0, **trigger):
    patch = GridTriggerSpec(**({"seed": 101 + seed, "size_frac": 0.25} | trigger))
    attack = Carlini2022BackdoorSpec(trigger=patch, target_class=f"class {seed}", num_poisons=num_poisons)
    dataset = DatasetSpec(frame_px=16, max_train_per_class=train_per_class)
    return run_of(attack, seed, variant, defence, dataset)


def model(run, arm, rows, **facts):
    count = 0.0 if arm in CLEAN else float(run.attack.num_poisons)
    return EvaluatedModel(
        run=run,
        arm=arm,
        measurements=measurements(rows),
        predictions=NO_PREDICTIONS,
        facts={"num_poisons": count, "num_train": 5000.0, "seconds": 40.0} | facts,
        similarity=histogram(0.1, (0.7 + count / 1000 if arm == "suspect" else 0.2) + run.seed / 100),
    )


def targeted(run, arm, hits, accuracy=0.5):
    pairs = run.attack.targets.num_targets
    share = (hits / pairs, pairs, *wilson(hits, pairs))
    return model(
        run,
        arm,
        [
            ("targeted_success", "target", "zero_shot", *share),
            ("target_rank", "target", "zero_shot", 6.0 - 5 * hits / pairs, pairs, None, None),
            ("accuracy", "clean", "zero_shot", accuracy, 1000, *wilson(round(1000 * accuracy), 1000)),
        ],
    )


def backdoor(run, arm, rate, accuracy=0.5, **facts):
    return model(
        run,
        arm,
        [
            ("attack_success_rate", "triggered", "zero_shot", rate, 900, *wilson(round(900 * rate), 900)),
            ("attack_success_rate", "unseen_trigger", "zero_shot", rate / 2, 900, None, None),
            ("z_score_sd", "triggered", "features", 3 * rate, 1000, None, None),
            ("similarity_triggered", "triggered", "features", 0.1 + 0.7 * rate, 1000, None, None),
            ("similarity_clean", "triggered", "features", 0.1, 1000, None, None),
            ("accuracy", "clean", "zero_shot", accuracy, 1000, None, None),
            ("accuracy", "triggered", "zero_shot", accuracy / 2, 1000, None, None),
            ("false_positives:cat", "triggered", "zero_shot", 7.0),
        ],
        **facts,
    )


HITS = {0: (0, 1, 0), 1: (0, 1, 1), 2: (2, 2, 1), 4: (4, 3, 4), 8: (4, 4, 4)}


def targeted_sweep():
    """Three models of four pairs a point; the control is listed with every count, as in a real report."""
    return [
        one
        for count in (1, 2, 4, 8)
        for seed in range(3)
        for one in (
            targeted(targeted_run(count, seed), "control", HITS[0][seed], 0.50 + 0.01 * seed),
            targeted(targeted_run(count, seed), "suspect", HITS[count][seed], 0.51 + 0.01 * seed + 0.002 * (seed % 2)),
        )
    ]


RATES = {5: (0.12, 0.2, 0.1), 50: (0.9, 0.8, 0.95)}


def backdoor_sweep():
    """Two counts, three models, and CleanCLIP after the larger count."""
    found = []
    for count, rates in RATES.items():
        for seed, rate in enumerate(rates):
            found.append(backdoor(backdoor_run(count, seed), "control", 0.1 + 0.01 * seed))
            found.append(backdoor(backdoor_run(count, seed), "suspect", rate, 0.49))
    for seed, rate in enumerate(RATES[50]):
        run = backdoor_run(50, seed, "cleanclip", CleanCLIPSpec())
        found.append(backdoor(run, "control", 0.1 + 0.01 * seed))
        found.append(backdoor(run, "suspect", rate, 0.49))
        found.append(backdoor(run, "student", 0.2 + 0.01 * seed, 0.48 + 0.01 * seed, seconds=9.0))
        found.append(backdoor(run, "distilled_control", 0.1, 0.49, seconds=9.0))
    return found


def histogram(clean, triggered):
    edges = np.linspace(-1, 1, 101)
    middle = (edges[:-1] + edges[1:]) / 2
    rows = [
        {"condition": condition, "low": low, "high": high, "num_pairs": int(1e4 * np.exp(-50 * (at - mean) ** 2))}
        for condition, mean in (("clean", clean), ("triggered", triggered))
        for low, high, at in zip(edges[:-1], edges[1:], middle, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SIMILARITY)
