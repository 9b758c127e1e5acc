"""The verdict lines and the details of runs that are paired with their controls."""

import pytest
from report_fakes import bare, one_pair, ten_pairs
from sweep_fakes import RATE, SIMILAR, SUCCESS, backdoor, backdoor_run, targeted, targeted_run

from ssl_backdoor.defences.cleanclip import CleanCLIPSpec
from ssl_backdoor.report.estimates import paired, swept
from ssl_backdoor.report.sentences import MOST_WORDS, pairs_clauses, punctuated
from ssl_backdoor.report.verdicts import Finding, Findings, is_short, of_figures, of_pairs, verdict_lines


def runs(excess, z_excess=(1.0,), student=0.2, accuracy=(0.6, 0.6, 0.6), one_control=False, unseen=None):
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
                ("accuracy", "clean", "knn", right + (i + (i % 3 - 1) * (arm != "control")) / 1000),
            ]
            if unseen is not None:
                other = 300.0 + i + (extra + (-1) ** i if arm == "suspect" else 0.0) * unseen
                rows.append(("target_false_positives", "unseen_trigger", "knn", other))
            result.append(bare(arm, rows, trigger_seed=i, seed=0 if one_control else i))
    return result


CLEAR = (1000, 1100, 900, 1050), (1.0, 1.1, 0.9, 1.05)


def answered(scored):
    lines = verdict_lines(of_pairs(paired(scored)))
    assert all(is_short(line) for line in lines)
    return lines


def said(scored):
    sentences = punctuated(pairs_clauses(paired(scored)))
    assert all(is_short(sentence, MOST_WORDS) for sentence in sentences)
    return " ".join(sentences)


def test_a_verdict_a_question_then_rates_and_counts():
    attack, defence, accuracy, *each = answered(runs(*CLEAR))
    assert attack == "Attack: works. ASR 32.9 % (1,316 of 4,000), control 7.6 %."
    assert defence.startswith("Defence: removes part of it. 80 % of the excess (")
    assert accuracy == "Clean accuracy: kept."
    assert [line.partition(":")[0] for line in each] == ["poisoned", "poisoned + CompRess"]
    details = said(runs(*CLEAR))
    assert "Attack success by kNN, poisoned: 32.9 % against 7.6 % in the control, +25.3 pt (+2" in details
    assert "Z-score, poisoned: 1.21 against 0.20 in the control, +1.01 (+0.95 to +1.08)" in details


@pytest.mark.parametrize(
    ("scored", "verdict"),
    [
        (runs((1000, -900, 1200, -1100), (1.0, 1.1, 0.9, 1.0)), "works in part"),
        (runs((10, -10, 12, -11), (0.1, -0.1, 0.12, -0.11)), "no effect found"),
        (runs((-100, -110, -90, -100), (-0.1, -0.11, -0.1, -0.1)), "no, it lowers it"),
        (runs(*CLEAR, unseen=1.0), "works with any patch"),
        (runs(*CLEAR, unseen=0.1), "works"),
        (runs(*CLEAR, one_control=True), "cannot tell (8 pairs, 1 control)"),
        ([one for one in runs(*CLEAR) if one.run.seed < 4], "cannot tell (4 pairs, 8 needed)"),
        (one_pair(num_test=500), "cannot tell (1 run)"),
        ([one for seed in range(3) for one in one_pair(num_test=200, seed=seed)], "works"),
    ],
)
def test_the_verdict_on_the_attack(scored, verdict):
    lines = answered(scored)
    assert lines[0].startswith(f"Attack: {verdict}. ")
    if "cannot tell" in verdict:
        assert lines[1] == f"Defence: {verdict}."
        assert lines[2] == f"Clean accuracy: {verdict}."
        assert "removes" not in said(scored)


@pytest.mark.parametrize(
    ("student", "verdict"),
    [
        (0.02, "removes it. 98 % of the excess"),
        (-0.3, "removes it. all of the excess (to below the control)"),
        (0.25, "removes part of it. 75 % of the excess"),
        (1.0, "removes nothing. 0 % of the excess"),
        (1.5, "removes nothing. −50 % of the excess"),
    ],
)
def test_the_verdict_on_the_defence(student, verdict):
    assert answered(runs(*CLEAR, student=student))[1].lower().startswith(f"defence: {verdict}".lower())


def test_a_share_is_told_only_where_the_excess_is_clear():
    unclear = answered(runs((10, -10, 12, -11), (0.1, -0.1, 0.12, -0.11)))
    assert unclear[1] == "Defence: cannot tell (no clear excess)."
    assert "Defence" not in " ".join(answered([one for one in runs(*CLEAR) if one.arm != "student"]))


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ((0.60, 0.59, 0.575), "Clean accuracy: kept."),
        (
            (0.60, 0.55, 0.60),
            "Clean accuracy: lost 5.0 points (4.9 to 5.1) for poisoned; kept for poisoned + CompRess.",
        ),
    ],
)
def test_the_cost_in_clean_accuracy(accuracy, words):
    assert words in answered(runs(*CLEAR, accuracy=accuracy))


def test_measures_that_are_told_together_are_corrected_together():
    values = (400, -60, 350, 100, 300, -100, 340, 60)  # p between 0.025 and 0.05, of the z-score too
    alone = paired(runs(values, (0.1, -0.1)))
    row = alone.get(
        *next((r.measure, r.point.arm, "", "excess") for r in alone.rows if r.name.endswith("positives_excess"))
    )
    assert 0.025 < row.p < 0.05
    assert answered(runs(values, (0.1, -0.1)))[0].startswith("Attack: no effect found.")


def test_what_is_removed_and_what_is_left_is_told_by_each_measure():
    text = said(runs(*CLEAR, student=0.25))
    assert "CompRess removes 75 % of the excess (75 to 75), by kNN." in text
    assert "What CompRess leaves is still significantly above the control's by kNN and z-score." in text
    assert "still significantly" not in said(runs(*CLEAR, student=0.0))
    assert "CompRess adds 50 % of the excess" in said(runs(*CLEAR, student=1.5))


def test_a_large_spread_and_a_small_one_mean_something_else():
    wide = said(runs((-200, 3000, 2500, 100)))
    assert "Results vary widely across pairs (−200 to +3,000, kNN): one pair is a poor predictor" in wide
    assert "Results agree closely across pairs (+900 to +1,100, kNN)" in said(runs(*CLEAR))


def test_runs_without_a_suspect_have_no_answer():
    for scored in ([one for one in runs((1,)) if one.arm == "control"], []):
        assert answered(scored) == ["There is no answer: no poisoned encoder with a clean-trained one beside it."]
        assert said(scored) == ""


def test_side_variants_enter_the_answer_where_there_is_no_main_one():
    scored = ten_pairs(num_test=200)
    main = [one for one in scored if not one.run.variant]
    assert answered(scored) == answered(main)
    assert said(scored) == said(main)
    lines = answered([one for seed in range(3) for one in one_pair(num_test=200, seed=seed, variant="CompRess")])
    assert lines[0].startswith("Attack: works. ASR ")


def test_many_findings_are_counted_and_the_largest_is_told():
    many = [Finding(f"method number {i}", "works" if i < 7 else "no effect found", f"ASR {i} %", i) for i in range(9)]
    assert verdict_lines(Findings(many, [], [])) == [
        "Attack: works for 7 of 9; no effect found for 2 of 9.",
        "method number 8: ASR 8 %.",
    ]
    differ = [Finding(f"line {i}", f"lost {i}.5 points ({i}.0 to {i}.9)") for i in range(9)]
    (line,) = verdict_lines(Findings([], [], differ))
    assert is_short(line)


def test_one_run_of_three_attacks_and_two_defences_is_answered_in_60_words():
    """The demo's shape."""
    run = backdoor_run(50, 0, "backdoor", CleanCLIPSpec())
    along = [backdoor(run, arm, rate) for arm, rate in
             (("control", 0.1), ("suspect", 0.75), ("student", 0.2), ("distilled_control", 0.1))]  # fmt: skip
    along += [targeted(targeted_run(16, 0, 8, "targeted"), arm, hits) for arm, hits in (("control", 1), ("suspect", 5))]
    figures = (SUCCESS.model_copy(update={"paper": ()}), RATE, SIMILAR)
    found = zip(of_pairs(paired(one_pair(num_test=200))), of_figures(figures, swept(figures, along)), strict=True)
    lines = verdict_lines(Findings(*(first + second for first, second in found)))
    assert lines[0] == "Attack: cannot tell (1 run)."
    assert lines[2] == "CLIP targeted poisoning: success 62.5 % (5 of 8), control 12.5 %."
    assert lines[-2:] == ["Defence: cannot tell (1 run).", "Clean accuracy: cannot tell (1 run)."]
    assert len(" ".join(lines).split()) <= 60
