"""Seeded stand-ins for scored encoders: the shape of real results, no training."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from ssl_backdoor.defences.compress import CompressSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.report.cells import Example
from ssl_backdoor.report.frame import EvaluatedModel
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import BYOLSpec, DatasetSpec, ReportSpec, RunSpec, TrainSpec
from ssl_backdoor.tables import CURVES, MEASUREMENTS, PREDICTIONS

CLASSES = ("airplane", "automobile", "cat", "frog", "horse")
PROBES = ("knn", "linear_1", "linear_10", "linear_100")
ARMS = ("control", "suspect", "student", "distilled_control")
CONDITIONS = ("clean", "triggered", "unseen_trigger")


def run_spec(trigger_seed=11, target="cat", seed=0, variant="", fraction=1.0, classes=CLASSES):
    return RunSpec(
        dataset=DatasetSpec(classes=classes, frame_px=16),
        attack=Saha2022TargetedSpec(
            trigger=GridTriggerSpec(seed=trigger_seed, size_px=6),
            target_class=target,
            poison_fraction_of_target=fraction,
        ),
        train=TrainSpec(method=BYOLSpec()),
        defences=(CompressSpec(),),
        seed=seed,
        variant=variant,
    )


def measurements(rows):
    """rows: (name, condition, probe, value[, n, low, high])."""
    full = [(*row, *(4000, None, None)[len(row) - 4 :], f"What {row[0].split(':')[0]} means.") for row in rows]
    return pa.Table.from_pylist([dict(zip(MEASUREMENTS.names, row, strict=True)) for row in full], schema=MEASUREMENTS)


NO_PREDICTIONS = PREDICTIONS.empty_table()


def bare(arm, rows, **spec):
    """An EvaluatedModel that holds only the given measurements."""
    return EvaluatedModel(run=run_spec(**spec), arm=arm, measurements=measurements(rows), predictions=NO_PREDICTIONS)


def wilson(count, n):
    share, z2 = count / n, 1.96**2
    centre, half = (
        (share + z2 / (2 * n)) / (1 + z2 / n),
        1.96 * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n),
    )
    return float(centre - half), float(centre + half)


def _pull(arm, condition, strength):
    if condition != "triggered":
        return 0.02 if condition == "unseen_trigger" else 0.0
    return {"control": 0.05, "suspect": strength, "student": 0.25 * strength, "distilled_control": 0.06}[arm]


def scored(arm, folder: Path | None, num_test=1000, strength=0.8, top="cat", **spec):
    """With predictions, drawn so that ``strength`` of the suspect's triggered images go to class ``top``."""
    run = run_spec(**spec)
    classes = run.dataset.classes
    rng = stream(run.seed, "fake", arm, run.attack.trigger.seed, run.variant)
    labels = np.repeat(np.arange(len(classes)), num_test // len(classes))
    predictions, rows = [], []
    target = classes.index(run.attack.target_class)
    for condition in CONDITIONS:
        for probe in PROBES:
            right = {"clean": 0.62, "triggered": 0.5, "unseen_trigger": 0.55}[condition] + rng.normal(0, 0.01)
            guess = np.where(rng.random(len(labels)) < right, labels, rng.integers(0, len(classes), len(labels)))
            guess = np.where(rng.random(len(labels)) < _pull(arm, condition, strength), classes.index(top), guess)
            predictions += [
                {"key": f"{i}", "label": int(a), "condition": condition, "probe": probe, "predicted": int(b)}
                for i, (a, b) in enumerate(zip(labels, guess, strict=True))
            ]
            rows += _metrics(labels, guess, classes, target, condition, probe)
    pull = _pull(arm, "triggered", strength)
    for name, factor in (("z_score_sd", 1.0), ("z_score_variance", 4.0)):
        rows.append((name, "triggered", "features", factor * (0.25 + 1.3 * pull + rng.normal(0, 0.05))))
        rows.append((name, "unseen_trigger", "features", factor * (0.25 + rng.normal(0, 0.05))))
    map_file = (
        None if folder is None else _map(folder, arm, labels, pull, rng, f"{run.attack.trigger.seed}{run.variant}")
    )
    return EvaluatedModel(
        run=run,
        arm=arm,
        measurements=measurements(rows),
        predictions=pa.Table.from_pylist(predictions, schema=PREDICTIONS),
        map_file=map_file,
        seconds=float(rng.uniform(60, 70)),
        curves=_curves(arm, rng),
    )


def _metrics(labels, guess, classes, target, condition, probe):
    n = len(labels)
    others = labels != target
    false = int(((guess == target) & others).sum())
    counts = np.bincount(guess, minlength=len(classes))
    low, high = wilson(false, int(others.sum()))
    right = int((guess == labels).sum())
    rows = [
        ("accuracy", condition, probe, right / n, n, *wilson(right, n)),
        (
            "target_false_positives",
            condition,
            probe,
            float(false),
            int(others.sum()),
            low * others.sum(),
            high * others.sum(),
        ),
        ("attack_success_rate", condition, probe, false / int(others.sum()), int(others.sum()), low, high),
        ("top_class_share", condition, probe, counts.max() / n, n, *wilson(int(counts.max()), n)),
    ]
    for index, name in enumerate(classes):
        wrong = int(((guess == index) & (labels != index)).sum())
        rows.append((f"false_positives:{name}", condition, probe, float(wrong)))
    return rows


def _map(folder, arm, labels, pull, rng, name):
    pick = rng.choice(len(labels), 50, replace=False)
    centres = rng.normal(0, 1, (labels.max() + 1, 16))
    clean = centres[labels[pick]] + rng.normal(0, 0.5, (50, 16))
    stuck = rng.random(50) < pull
    triggered = np.where(stuck[:, None], 3 + rng.normal(0, 0.3, (50, 16)), clean + rng.normal(0, 0.2, (50, 16)))
    file = folder / f"map-{arm}-{name}.npz"
    np.savez(
        file,
        features=np.concatenate([clean, triggered]).astype(np.float32),
        label=np.tile(labels[pick], 2).astype(np.int32),
        triggered=np.repeat([False, True], 50),
    )
    return file


def _curves(arm, rng):
    steps = np.arange(0, 1800, 20)
    distilled = arm in ("student", "distilled_control")
    loss = (0.8 * np.exp(-steps / 500) + 0.2 if distilled else 3 * np.exp(-steps / 300) + 0.9) + rng.normal(
        0, 0.02, len(steps)
    )
    rows = [
        {"step": int(step), "epoch": step / 75, "name": name, "value": float(value)}
        for name, values in (("loss", loss), ("lr", loss * 0.01))
        for step, value in zip(steps, values, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=CURVES)


PAIRS = [(seed, CLASSES[i % 5]) for i, seed in enumerate(range(11, 21))]


def ten_pairs(folder: Path | None = None, num_test=1000, pairs=PAIRS):
    """Ten pairs x (main, fraction_0.5); the control is given for the main variant alone."""
    result = []
    for index, (trigger_seed, target) in enumerate(pairs):
        astray = index % 4 == 3  # the cluster lands on another class
        top = CLASSES[(CLASSES.index(target) + 2) % 5] if astray else target
        strength = float(stream(1, "strength", trigger_seed).uniform(0.15, 0.95))
        for variant, fraction, scale in (("", 1.0, 1.0), ("fraction_0.5", 0.5, 0.6)):
            for arm in ARMS:
                if variant and arm in ("control", "distilled_control"):
                    continue
                result.append(
                    scored(
                        arm,
                        folder if index == 0 and not variant else None,
                        num_test,
                        strength * scale,
                        top,
                        trigger_seed=trigger_seed,
                        target=target,
                        variant=variant,
                        fraction=fraction,
                    )
                )
    return result


def one_pair(folder: Path | None = None, num_test=1000, **spec):
    return [scored(arm, folder, num_test, **spec) for arm in ARMS]


def examples(captions, side=64):
    result = []
    for index, caption in enumerate(captions):
        rng = stream(index, "example")
        ramp = np.linspace(40, 220, side)[:, None, None] * rng.uniform(0.4, 1, 3)
        image = np.clip(np.broadcast_to(ramp, (side, side, 3)) + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(
            np.uint8
        )
        size = side * 3 // 8
        x, y = (int(v) for v in rng.integers(0, side - size, 2))
        poisoned = image.copy()
        grid = rng.integers(0, 2, (3, 3, 3)).astype(np.uint8) * 255
        poisoned[y : y + size, x : x + size] = grid.repeat(size // 3, 0).repeat(size // 3, 1)
        result.append(Example(image, poisoned, (x, y, size, size), caption))
    return result


def find(results, name, arm, condition, probe, variant=""):
    """The estimate that files spell so, or None."""
    wanted = {"name": name, "arm": arm + f"[{variant}]" * bool(variant), "condition": condition, "probe": probe}
    return next((row for row in results.rows if wanted.items() <= row.record().items()), None)


def report_spec(scored_runs, **changes):
    values = {
        "recipe": "cifar10_byol",
        "question": "If every unlabelled image of one class carries a small patch, does BYOL tie the patch to that "
        "class, and does distillation on clean images undo it?",
        "note": "Ten trigger/target pairs, fixed before the first run, none dropped. 16 px images, a patch of 37 % of "
        "the side: easier than the paper's setting.",
        "runs": tuple(one.run for one in scored_runs if one.arm == "suspect"),
    }
    return ReportSpec(**(values | changes))
