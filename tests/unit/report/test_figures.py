import io

import numpy as np
import pytest
from PIL import Image
from report_fakes import CLASSES, examples, one_pair

from ssl_backdoor.report import figures
from ssl_backdoor.report.aggregate import aggregate
from ssl_backdoor.report.drawing import plain


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))


def test_labels_keep_to_the_font_and_the_limit():
    assert plain("cat\n\U0001f980\u4e2d") == "cat???"
    assert plain("x" * 30) == "x" * 23 + "…"
    assert plain("naïve Größe") == "naïve Größe"


def test_many_classes_fit():
    classes = tuple(f"n{index:08d} with a rather long name" for index in range(40))
    scored = one_pair(num_test=400, classes=classes, target=classes[3], top=classes[3])
    assert figures.confusion(scored) is not None
    picture = figures.false_positives(scored, aggregate(scored))
    assert picture is not None
    assert pixels(picture).shape[0] < 1400  # no more bars than fit
    assert figures.landing(scored) is None


def test_the_map_is_seeded(tmp_path):
    scored = one_pair(tmp_path, num_test=200)
    first, second = figures.embedding(scored), figures.embedding(scored)
    assert first is not None
    assert first == second


def test_a_flat_map_does_not_fail(tmp_path):
    scored = one_pair(tmp_path, num_test=200)
    for one in scored:
        flat = np.repeat([False, True], 4)
        np.savez(one.map_file, features=np.ones((8, 4), np.float32), label=np.zeros(8, np.int32), triggered=flat)
    assert figures.embedding(scored) is not None


def test_the_box_of_the_trigger_is_outlined():
    (example,) = examples(["a"])
    grey = np.full_like(example.original, 128)
    drawn = [
        pixels(figures.poisons([example._replace(original=grey, poisoned=grey, box=box)]))
        for box in ((5, 5, 20, 20), (30, 30, 20, 20))
    ]
    assert (drawn[0] != drawn[1]).any()
    assert figures.poisons([]) is None


def test_a_shared_control_counts_as_one_training():
    scored = one_pair(num_test=200)
    table = scored[0].curves
    assert len(figures._distinct([table, table, scored[1].curves, None])) == 2


@pytest.mark.parametrize("draw", [figures.embedding, figures.confusion, figures.landing, figures.loss_curves])
def test_nothing_to_show_draws_nothing(draw):
    assert draw([]) is None


def test_confusion_counts_true_by_predicted():
    scored = one_pair(num_test=500, strength=1.0, target="cat", top="cat")
    suspect = next(one for one in scored if one.arm == "suspect")
    label, guess = figures.predicted(suspect, "triggered", "knn")
    assert (guess == CLASSES.index("cat")).all()
    assert np.bincount(label).tolist() == [100] * 5
