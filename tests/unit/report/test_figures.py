import io

import numpy as np
import pytest
from PIL import Image
from report_fakes import CLASSES, examples, one_pair

from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.figures.bars import false_positives
from ssl_backdoor.report.figures.curves import distinct_losses, loss_curves
from ssl_backdoor.report.figures.drawing import plain
from ssl_backdoor.report.figures.feature_map import embedding
from ssl_backdoor.report.figures.heatmaps import confusion, prediction_heatmap
from ssl_backdoor.report.figures.images import poisons


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))


def test_labels_keep_to_the_font_and_the_limit():
    assert plain("cat\n\U0001f980\u4e2d") == "cat???"
    assert plain("x" * 30) == "x" * 23 + "…"
    assert plain("naïve Größe") == "naïve Größe"


def test_many_classes_fit():
    classes = tuple(f"n{index:08d} with a rather long name" for index in range(40))
    results = paired(one_pair(num_test=400, classes=classes, target=classes[3], top=classes[3]))
    assert confusion(results, "") is not None
    picture = false_positives(results, "")
    assert picture is not None
    assert pixels(picture).shape[0] < 1400  # no more bars than fit
    assert prediction_heatmap(results, "") is None


def test_the_map_is_seeded(tmp_path):
    results = paired(one_pair(tmp_path, num_test=200))
    first, second = (embedding(results, "") for _ in range(2))
    assert first is not None
    assert first == second


def test_a_flat_map_does_not_fail(tmp_path):
    scored = one_pair(tmp_path, num_test=200)
    for one in scored:
        flat = np.repeat([False, True], 4)
        np.savez(one.map_file, features=np.ones((8, 4), np.float32), label=np.zeros(8, np.int32), triggered=flat)
    assert embedding(paired(scored), "") is not None


def test_the_box_of_the_trigger_is_outlined():
    (example,) = examples(["a"])
    grey = np.full_like(example.original, 128)
    drawn = [
        pixels(poisons([example._replace(original=grey, poisoned=grey, box=box)]))
        for box in ((5, 5, 20, 20), (30, 30, 20, 20))
    ]
    assert (drawn[0] != drawn[1]).any()
    assert poisons([]) is None


def test_a_trigger_without_a_box_is_shown_all_the_same():
    (example,) = examples(["a"])
    picture = poisons([example._replace(box=None)])
    assert picture is not None
    assert "outlined" not in picture.caption


def test_a_shared_control_counts_as_one_training():
    scored = one_pair(num_test=200)
    table = scored[0].curves
    assert len(distinct_losses([table, table, scored[1].curves, None])) == 2


@pytest.mark.parametrize("draw", [embedding, confusion, prediction_heatmap, loss_curves, false_positives])
def test_nothing_to_show_draws_nothing(draw):
    assert draw(paired([]), "") is None


def test_confusion_counts_true_by_predicted():
    scored = one_pair(num_test=500, strength=1.0, target="cat", top="cat")
    suspect = next(one for one in scored if one.arm == "suspect")
    label, guess = suspect.predicted("triggered", "knn")
    assert (guess == CLASSES.index("cat")).all()
    assert np.bincount(label).tolist() == [100] * 5
