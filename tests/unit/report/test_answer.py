import pytest
from report_fakes import bare, one_pair, ten_pairs

from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.sentences import pairs_clauses, punctuated


def runs(excess, z_excess=(1.0,), student=0.2, accuracy=(0.6, 0.6, 0.6), one_control=False):
    """One pair an entry of ``excess``, repeated to eight: FP (kNN), z-score, accuracy of control, suspect, student."""
    result = []
    for i, extra in enumerate(list(excess) * (8 // len(excess)) if len(excess) > 1 else excess):
        z = z_excess[i % len(z_excess)]
        fp = (300.0 + i, 300.0 + i + extra, 300.0 + i + extra * student)
        zs = (0.2, 0.2 + z, 0.2 + z * student)
        for arm, count, score, right in zip(("control", "suspect", "student"), fp, zs, accuracy, strict=True):
            rows = [
                ("target_false_positives", "triggered", "knn", count),
                ("attack_success_rate", "triggered", "knn", count / 4000),
                ("z_score_sd", "triggered", "features", score),
                ("accuracy", "clean", "knn", right + i / 1000),
            ]
            result.append(bare(arm, rows, trigger_seed=i, seed=0 if one_control else i))
    return result


CLEAR = (1000, 1100, 900, 1050), (1.0, 1.1, 0.9, 1.05)


def said(scored, note=""):
    return " ".join(punctuated(pairs_clauses(paired(scored), note)))


def test_a_verdict_comes_first_then_rates_beside_counts():
    lines = punctuated(pairs_clauses(paired(runs(*CLEAR))))
    assert lines[0] == "Attack works: yes, over 8 pairs."
    assert lines[1].startswith(
        "Attack success with kNN: 32.9 % against 7.6 % in the control (1,316 against 304 of 4,000), +25.3 pt (+2"
    )
    assert lines[2].startswith("Z-score: 1.21 against 0.20 in the control, +1.01 (+0.95 to +1.08)")
    assert all(line.endswith(".") and len(line.split()) <= 30 for line in lines)


def test_an_effect_in_one_measure_only():
    text = said(runs((1000, -900, 1200, -1100), (1.0, 1.1, 0.9, 1.0)))
    assert text.startswith("Attack works: in part: yes by z-score, not shown by kNN, over 8 pairs.")
    assert "not significant." in text
    assert "no share of it can be told with kNN, where the excess is not clear (p < 0.01)" in text


def test_a_null_result_is_said_as_such():
    text = said(runs((10, -10, 12, -11), (0.1, -0.1, 0.12, -0.11)))
    assert text.startswith("Attack works: no significant effect, over 8 pairs.")
    assert "removes" not in text


def test_a_reverse_result_is_said_as_such():
    text = said(runs((-100, -110, -90, -100), (-0.1, -0.11, -0.1, -0.1)))
    assert text.startswith("Attack works: no: it lowers kNN and z-score, over 8 pairs.")


def test_measures_that_are_told_together_are_corrected_together():
    values = (400, -60, 350, 100, 300, -100, 340, 60)  # p between 0.025 and 0.05, of the z-score too
    alone = paired(runs(values, (0.1, -0.1)))
    row = alone.get(
        *next((r.measure, r.point.arm, "", "excess") for r in alone.rows if r.name.endswith("positives_excess"))
    )
    assert 0.025 < row.p < 0.05
    assert said(runs(values, (0.1, -0.1))).startswith("Attack works: no significant effect")


def test_the_share_removed_and_what_is_left():
    text = said(runs(*CLEAR, student=0.25))
    assert "Defence CompRess: removes 75 % (kNN, 75 to 75) and 75 % (z-score, 75 to 75) of the excess" in text
    assert "What it leaves is still significantly above the control's with kNN and z-score" in text
    assert "still significantly" not in said(runs(*CLEAR, student=0.0))


def test_no_share_is_above_all_of_the_excess():
    assert "removes all (kNN, to below the control) and all (z-score, to below the control) of the excess" in said(
        runs(*CLEAR, student=-0.3)
    )


def test_a_defence_that_makes_it_worse():
    assert "adds 50 % (kNN, −50 to −50) and 50 % (z-score, −50 to −50) to the excess" in said(runs(*CLEAR, student=1.5))


def test_no_defence_no_word_of_it():
    assert "efence" not in said([one for one in runs(*CLEAR) if one.arm != "student"])


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ((0.60, 0.59, 0.575), "Clean accuracy: kept within 3 points of the control's (poisoned −1.0 pt"),
        ((0.60, 0.55, 0.60), "Clean accuracy: falls by more than 3 points (poisoned −5.0 pt"),
    ],
)
def test_the_cost_in_clean_accuracy(accuracy, words):
    found = runs(*CLEAR, accuracy=accuracy)
    jitter = [row for one in found for row in one.measurements.to_pylist() if row["name"] == "accuracy"]
    assert len({row["value"] for row in jitter}) > 3
    assert "Clean accuracy: cannot tell" in said(found)  # the same difference in every pair: no spread
    moved = [_moved(one) for one in found]
    assert words in said(moved)


def _moved(one):
    """Accuracy of other arms than the control varies by a tenth of a point."""
    rows = one.measurements.to_pylist()
    for row in rows:
        if row["name"] == "accuracy" and one.arm != "control":
            row["value"] += (one.run.seed % 3 - 1) / 1000
    return bare(one.arm, [(r["name"], r["condition"], r["probe"], r["value"]) for r in rows],
                trigger_seed=one.run.attack.trigger.seed, seed=one.run.seed)  # fmt: skip


def test_a_large_spread_and_a_small_one_mean_something_else():
    wide = said(runs((-200, 3000, 2500, 100)))
    assert "Results vary widely across pairs (−200 to +3,000 with kNN), so one pair is a poor predictor" in wide
    assert "Results agree closely across pairs (+900 to +1,100 with kNN)" in said(runs(*CLEAR))


def test_one_model_of_each_is_no_evidence_and_pairs_of_one_control_neither():
    text = said(one_pair(num_test=500), note="Evidence: the ten-pair recipe.")
    assert text.startswith("Attack works: cannot tell (n = 1). Attack success with kNN: ")
    assert "Defence CompRess: cannot tell (n = 1)" in text
    assert "removes" not in text
    assert "For evidence see the note." in text
    shared = said(runs(*CLEAR, one_control=True))
    assert shared.startswith("Attack works: cannot tell (8 pairs, 1 clean-trained encoder).")
    assert "removes" not in shared


def test_seeds_of_one_pair_are_trainings_of_their_own():
    scored = [one for seed in range(3) for one in one_pair(num_test=200, seed=seed)]
    assert said(scored).startswith("Attack works: yes, over 3 seeds.")


def test_few_pairs_cannot_be_told_whatever_their_clean_trained_encoders():
    scored = [one for one in runs(*CLEAR) if one.run.seed < 4]
    assert said(scored).startswith("Attack works: cannot tell (4 pairs, it takes 8).")


def test_runs_without_a_suspect_have_no_answer():
    assert said([one for one in runs((1,)) if one.arm == "control"]).startswith("There is no answer")
    assert said([]).startswith("There is no answer")


def test_side_variants_do_not_enter_the_answer():
    scored = ten_pairs(num_test=200)
    assert said(scored) == said([one for one in scored if not one.run.variant])
