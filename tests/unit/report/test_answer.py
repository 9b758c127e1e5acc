import pytest
from report_fakes import bare, one_pair, ten_pairs

from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.sentences import pairs_clauses, punctuated


def runs(excess, z_excess=(1.0,), student=0.2, accuracy=(0.6, 0.6, 0.6)):
    """One pair an entry of ``excess``: FP (kNN), z-score and clean accuracy of control, suspect and student."""
    result = []
    for i, extra in enumerate(excess):
        z = z_excess[i % len(z_excess)]
        fp = (300.0 + i, 300.0 + i + extra, 300.0 + i + extra * student)
        zs = (0.2, 0.2 + z, 0.2 + z * student)
        for arm, count, score, right in zip(("control", "suspect", "student"), fp, zs, accuracy, strict=True):
            rows = [
                ("target_false_positives", "triggered", "knn", count),
                ("z_score_sd", "triggered", "features", score),
                ("accuracy", "clean", "knn", right),
            ]
            result.append(bare(arm, rows, trigger_seed=i))
    return result


def said(scored, note=""):
    return " ".join(punctuated(pairs_clauses(paired(scored), note)))


def test_it_is_one_sentence():
    text = said(runs((1000, 1100, 900, 1050), (1.0, 1.1, 0.9, 1.05)))
    assert text.endswith(".")
    assert ". " not in text


def test_a_clear_effect_is_said_with_size_and_interval():
    text = said(runs((1000, 1100, 900, 1000), (1.0, 1.1, 0.9, 1.0)))
    assert text.startswith("The backdoor takes hold over 4 trigger/target pairs")
    assert "by +1,000 with kNN (95 % interval +870 to +1,130)" in text
    assert "the z-score by +1.00 (+0.87 to +1.13)" in text
    assert "not significant" not in text


def test_an_effect_in_one_measure_only():
    text = said(runs((1000, -900, 1200, -1100), (1.0, 1.1, 0.9, 1.0)))
    assert text.startswith("The backdoor takes hold by some measures and not by others")
    assert "not significant)" in text
    assert "with kNN there is no significant excess to remove" in text


def test_a_null_result_is_said_as_such():
    text = said(runs((10, -10, 12, -11), (0.1, -0.1, 0.12, -0.11)))
    assert text.startswith("No significant backdoor effect over 4 trigger/target pairs")
    assert "with kNN and z-score there is no significant excess to remove" in text
    assert "removes" not in text


def test_a_reverse_result_is_said_as_such():
    assert said(runs((-100, -110, -90, -100), (-0.1, -0.11, -0.1, -0.1))).startswith("The effect runs the other way")


def test_the_share_removed_and_what_is_left():
    text = said(runs((1000, 1100, 900, 1000), (1.0, 1.1, 0.9, 1.0), student=0.25))
    assert "removes 75 % (kNN, 75 to 75) and 75 % (z-score, 75 to 75) of the excess" in text
    assert "what it leaves is still significantly above the control's with kNN and z-score" in text
    assert "still significantly" not in said(runs((1000, 1100, 900, 1000), (1.0, 1.1, 0.9, 1.0), student=0.0))


def test_a_defence_that_makes_it_worse():
    assert "defence adds 50 % (kNN) and 50 % (z-score) to the excess" in said(runs((1000, 1100, 900), student=1.5))


def test_no_defence_no_word_of_it():
    scored = [one for one in runs((1000, 1100, 900)) if one.arm != "student"]
    assert "defence" not in said(scored)


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (
            (0.60, 0.59, 0.575),
            "clean accuracy stays within 3 points of the control's (−1.0 points in the poisoned encoder and −2.5",
        ),
        (
            (0.60, 0.55, 0.60),
            "clean accuracy moves more than 3 points from the control's (−5.0 points in the poisoned encoder",
        ),
    ],
)
def test_the_cost_in_clean_accuracy(accuracy, words):
    assert words in said(runs((1000, 1100, 900), accuracy=accuracy))


def test_a_large_spread_and_a_small_one_mean_something_else():
    wide = said(runs((-200, 3000, 2500, 100, 2800)))
    assert "results vary widely across pairs (−200 to +3,000 with kNN), so one pair is a poor predictor" in wide
    assert "results agree closely across pairs (+900 to +1,100 with kNN)" in said(runs((1000, 1100, 900)))


def test_one_pair_illustrates_whatever_its_numbers():
    scored = one_pair(num_test=500)
    text = said(scored, note="Evidence: the ten-pair recipe.")
    assert text.startswith("One trigger/target pair illustrates and is no evidence (for evidence see the note)")
    assert "takes hold" not in text
    assert "times)" in text
    assert "see the note" not in said(scored)


def test_one_pair_over_seeds_is_still_no_evidence():
    scored = [one for seed in range(3) for one in one_pair(num_test=200, seed=seed)]
    assert said(scored).startswith("One trigger/target pair over 3 seeds illustrates and is no evidence")


def test_runs_without_a_suspect_have_no_answer():
    assert said([one for one in runs((1,)) if one.arm == "control"]).startswith("There is no answer")
    assert said([]).startswith("There is no answer")


def test_side_variants_do_not_enter_the_answer():
    scored = ten_pairs(num_test=200)
    assert said(scored) == said([one for one in scored if not one.run.variant])
