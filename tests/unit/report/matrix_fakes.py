"""Seeded stand-ins for a matrix of methods, pairs and seeds, with the tables that are read from it."""

from dataclasses import replace

import numpy as np
from report_fakes import CLASSES, bare, report_spec, scored

from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import PaperCell, TableRow, TableSpec

KEY = ("target_false_positives", "triggered", "linear_100")
STRENGTHS = {"MoCo v2": 0.75, "BYOL": 0.85, "MSF": 0.4, "Jigsaw": 0.07, "RotNet": 0.0, "MAE": 0.05}
PAIRS = ((11, "airplane"), (12, "automobile"), (13, "cat"))


def table(labels, probe="linear_100", name="table1", **changes):
    rows = tuple(TableRow(label=label, variant=label) for label in labels)
    values = {"name": name, "title": f"Table 1 ({probe})", "rows": rows, "probe": probe}
    return TableSpec(**(values | changes))


def paper(row, *values):
    """Accuracy and FP of the four cells, in the order of the table."""
    places = [(arm, condition) for arm in ("control", "suspect") for condition in ("clean", "triggered")]
    return tuple(
        PaperCell(row=row, arm=arm, condition=condition, name=name, value=values[2 * index + which])
        for index, (arm, condition) in enumerate(places)
        for which, name in enumerate(("accuracy", "target_false_positives"))
    )


def cell(label, pair, seed, control, suspect, key=KEY, accuracy=(0.6, 0.59)):
    """Control and suspect of one pair and seed, with only what a table reads."""
    clean = ("accuracy", "clean", key[2])
    return [
        bare(arm, [(*key, float(value)), (*clean, right)], trigger_seed=pair, seed=seed, variant=label)
        for arm, value, right in zip(("control", "suspect"), (control, suspect), accuracy, strict=True)
    ]


def grid(excess):
    """``excess``: label -> one row a pair, one column a seed; the control is 100 + 10 x seed."""
    return [
        one
        for label, values in excess.items()
        for pair, seeds in enumerate(values)
        for seed, value in enumerate(seeds)
        for one in cell(label, 11 + pair, seed, 100 + 10 * seed, 100 + 10 * seed + value)
    ]


def neighbours_file(folder, name, num_classes=5, queries=4, count=6, side=24):
    rng = stream(0, "neighbours", name)
    label = rng.integers(0, num_classes, (queries, count))
    tint = rng.integers(60, 200, (num_classes, 3))
    file = folder / f"neighbours-{len(list(folder.glob('neighbours-*')))}.npz"
    noise = rng.integers(0, 40, (queries, count, side, side, 3))
    query_label = rng.integers(0, num_classes, queries)
    query = tint[query_label][:, None, None] + rng.integers(0, 40, (queries, side, side, 3))
    query[:, 4:12, 4:12] = rng.integers(0, 2, (queries, 8, 8, 1)) * 255
    np.savez(
        file,
        query=query.astype(np.uint8),
        neighbours=(tint[label][:, :, None, None] + noise).astype(np.uint8),
        label=label.astype(np.int32),
        query_label=query_label.astype(np.int32),
        cosine=np.sort(rng.uniform(0.5, 0.99, (queries, count)))[:, ::-1].astype(np.float32),
    )
    return file


def matrix(folder, labels=tuple(STRENGTHS), pairs=PAIRS, seeds=3, num_test=200):
    """Control and suspect of every cell; the first suspect of each label has a sheet of neighbours."""
    found = []
    for label in labels:
        for index, (trigger_seed, target) in enumerate(pairs):
            for seed in range(seeds):
                luck = float(stream(seed, "luck", trigger_seed, label).uniform(0.4, 1.0))
                for arm in ("control", "suspect"):
                    first = folder if (index, seed) == (0, 0) else None
                    one = scored(
                        arm, first if label == labels[0] else None, num_test, STRENGTHS[label] * luck, target,
                        trigger_seed=trigger_seed, target=target, seed=seed, variant=label,
                    )  # fmt: skip
                    sheet = neighbours_file(folder, label) if first and arm == "suspect" else None
                    facts = {"seconds": one.seconds - 5, "num_replicas": 1.0}
                    found.append(replace(one, neighbours=sheet, facts=facts))
    return found


def matrix_spec(found, tables, **changes):
    values = {"recipe": "saha2022_table1", "tables": tables, "unit": "seed", "note": "", "question": "Which methods?"}
    return report_spec(found, **(values | changes))


__all__ = ["CLASSES", "KEY", "PAIRS", "STRENGTHS", "cell", "grid", "matrix", "matrix_spec", "paper", "table"]
