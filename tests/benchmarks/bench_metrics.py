"""All numbers of an evaluation from its predictions and features, as test sets grow: what is held must not.

    python -m tests.benchmarks.bench_metrics [--quick] [--out FOLDER]

Drawn predictions of two conditions for ten classes, and 64 features an image, clean and triggered. The peer is
scikit-learn's confusion matrix of each condition, from which the rest would be counted. Memory is what the work adds
to the process's peak, tables and features already held.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.evaluate.metrics import measure_features, measure_predictions
from ssl_backdoor.seeds import stream
from ssl_backdoor.tables import PREDICTIONS
from tests.benchmarks.harness import Comparison, Options, alone, main, timed

FULL, QUICK = (60_000, 600_000, 3_000_000), (500, 2_000)
CLASSES = tuple(f"class-{label}" for label in range(10))
CONDITIONS = ("clean", "triggered")
DIM = 64
PEER = "scikit-learn's confusion matrices"


def drawn_predictions(num_images: int) -> pa.Table:
    """Of every image under every condition; a third of them right by chance and more."""
    draw, parts = stream(0, "bench_metrics"), []
    for condition in CONDITIONS:
        label = draw.integers(0, len(CLASSES), num_images, dtype=np.int32)
        guess = draw.integers(0, len(CLASSES), num_images, dtype=np.int32)
        same = pa.nulls(num_images, pa.string())
        columns = {
            "key": pc.fill_null(same, "test-0"),
            "label": label,
            "condition": pc.fill_null(same, condition),
            "probe": pc.fill_null(same, "knn"),
            "predicted": np.where(draw.random(num_images) < 0.3, label, guess),
        }
        parts.append(pa.table(columns, schema=PREDICTIONS))
    return pa.concat_tables(parts)


def sklearn_matrices(predictions: pa.Table) -> None:
    from sklearn.metrics import confusion_matrix

    for condition in CONDITIONS:
        here = predictions.filter(pc.equal(predictions["condition"], condition))
        confusion_matrix(here["label"].to_numpy(), here["predicted"].to_numpy())


def measure(num_images: int, repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, peak MB) of each work once a repetition; in a process of its own."""
    predictions = drawn_predictions(num_images)
    draw = stream(1, "bench_metrics")
    clean, triggered = (draw.random((num_images, DIM), dtype=np.float32) for _ in CONDITIONS)
    works: dict[str, Callable[[], object]] = {
        "predictions": lambda: measure_predictions(predictions, CLASSES, 3),
        "features": lambda: measure_features(clean, triggered, "triggered"),
        PEER: lambda: sklearn_matrices(predictions),
    }
    few = drawn_predictions(100)  # imports
    measure_predictions(few, CLASSES, 3)
    sklearn_matrices(few)
    measure_features(clean[:100], triggered[:100], "triggered")
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for repetition in range(repetitions):
        for name in list(works)[:: 1 if repetition % 2 == 0 else -1]:
            costs[name].append(timed(works[name]))
    return costs


def run(options: Options) -> Iterator[Comparison]:
    for num_images in QUICK if options.quick else FULL:
        costs = alone(measure, num_images, options.repetitions)
        case = f"{num_images:,} images"
        for index, unit in enumerate(("s", "MB of memory")):
            of_predictions = {"ours": costs["predictions"], PEER: costs[PEER]}
            figures = {name: [cost[index] for cost in each] for name, each in of_predictions.items()}
            if min(figures["ours"]) == 0:  # no memory at all has no ratio
                del figures[PEER]
            yield Comparison(f"predictions of {case}", unit, figures, "less")
            yield Comparison(f"features of {case}", unit, {"ours": [cost[index] for cost in costs["features"]]}, "less")


if __name__ == "__main__":
    main(run, __doc__)
