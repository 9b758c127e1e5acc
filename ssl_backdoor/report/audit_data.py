"""The pages of an audit of data, and of the auditor's own report card."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssl_backdoor.report.audit import CONTROL, PLANTED, SUSPECT, Pixels, audit_table, share_of, write_page
from ssl_backdoor.report.cells import MISSING, Picture
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.page import Section


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """What the auditor's report card says, for people."""
    uniform, poisoned, seconds = card["uniformity"], card["poisoned"], card["seconds"]
    lines = [
        f"false alarms: {len(uniform['p_values'])} clean encoders among {uniform['num_siblings']} clean siblings, "
        f"p-values uniform by Kolmogorov and Smirnov's test with p = {uniform['ks_p_value']:.2g} (distance "
        f"{uniform['ks']:.2f})"
    ]
    lines += [
        f"planted patches of {share_of(one['area'])} of the area: {one['num_found']} of {one['num']} found at a "
        f"false-positive rate of {card['rate']:.2g} (95 % interval {share_of(one['low'])} to {share_of(one['high'])}); "
        f"predicted {one['predicted']}, found in others {one['found']}"
        for one in card["power"]
    ]
    unworkable = sum(bool(one["failure"]) for one in card["planted"])
    lines += [f"{unworkable} of {len(card['planted'])} planted backdoors did not work and do not count"] * (
        unworkable > 0
    )
    if poisoned["num"]:
        lines.append(
            f"encoders trained on poisoned data: {poisoned['num_found']} of {poisoned['num']} found (95 % interval "
            f"{share_of(poisoned['low'])} to {share_of(poisoned['high'])})"
        )
    lines.append(
        f"seconds of the clock: {seconds['median_search']:.0f} a search, {seconds['median_copy']:.0f} a planted copy "
        f"with its search (medians), {seconds['all']:.0f} for all"
    )
    return lines


def write_card(card: Mapping[str, Any], lines: Sequence[str], out: Path) -> dict[str, str]:
    """Write the auditor's report card into ``out``, as ``write_encoder_audit`` does."""
    figure = Figure(figsize=(10.0, 3.0), layout="constrained")
    left, right = drawing.panels(figure, 2)
    groups = {
        "clean": (list(card["scores"]["clean"].values()), CONTROL),
        "trained on poisoned data": (list(card["scores"]["poisoned"].values()), SUSPECT),
        "planted": ([one["score"] for one in card["planted"] if not one["failure"]], PLANTED),
    }
    shown = [
        ([-score for score in scores if score is not None], name, colour) for name, (scores, colour) in groups.items()
    ]
    largest = max([0.05, *(value for values, _, _ in shown for value in values)])
    left.hist(
        [values for values, _, _ in shown],
        bins=np.linspace(0, 1.05 * largest, 24).tolist(),
        stacked=True,
        color=[colour for _, _, colour in shown],
        label=[name for _, name, _ in shown],
    )
    left.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g} %")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False, fontsize=8.5)
    drawing.headed(left, "Smallest patch, share of the image")
    p_values = sorted(card["uniformity"]["p_values"])
    right.plot([0, 1], [0, 1], color=CONTROL, linestyle="--", linewidth=1)
    right.step([0, *p_values, 1], [0, *np.arange(1, len(p_values) + 1) / len(p_values), 1], where="post", color=SUSPECT)
    drawing.headed(right, "p-values of clean encoders: share at most p")
    picture = drawing.picture("card", figure, "Scores and p-values", "Dashed: uniform.")
    rows = [
        (
            share_of(one["area"]),
            one["predicted"],
            one["found"],
            f"{one['num_found']} of {one['num']}",
            f"{share_of(one['low'])} to {share_of(one['high'])}",
        )
        for one in card["power"]
    ]
    heads = (
        "area of the planted patch",
        "predicted by half of the encoders",
        "found in the other half",
        "in all",
        "95 %",
    )
    code = json.dumps({name: card[name] for name in ("detector", "scores", "seconds")}, indent=1)
    sections = [
        Section("Scores and p-values", "scores", nav="Scores", pictures=(picture,), has_titles=False),
        Section("Power, predicted and found", "power", nav="Power", tables=(audit_table(heads, rows),)),
        Section("Record", "record", nav="Record", parts=[Section(fold="Scores, settings, seconds", code=code)]),
    ]
    return write_page(card, sections, lines, out)


def data_lines(facts: Mapping[str, Any]) -> list[str]:
    """What an audit of data says, for people."""
    count = f"{facts['num_samples']:,} training images, {len(facts['filters'])} filters ({', '.join(facts['filters'])})"
    if not facts["num_trusted"]:
        return [
            "ranks only: without a trusted part (--trusted) no error rate can be given, and nothing is called poisoned",
            count,
        ]
    smallest = len(facts["filters"]) / (facts["num_trusted"] + 1)
    group = smallest * facts["num_samples"] / facts["rate"]
    among = f"unlike the {facts['num_trusted']:,} trusted ones at a false discovery rate of {facts['rate']:.2g}"
    found = f"{facts['num_excluded']:,} samples are {among}: suspicious, which rare but honest images are as well"
    lines = [found if facts["num_excluded"] else f"no sample is {among}", count]
    if not facts["num_excluded"] and group > 1:
        lines.append(
            f"so few trusted images allow no p below {smallest:.2g}: only {np.ceil(group):,.0f} samples or more at "
            "that p would be found"
        )
    return lines


def write_data_audit(
    facts: Mapping[str, Any], inspected: Mapping[str, Any], scores: pa.Table, shown: Pixels, out: Path
) -> dict[str, str]:
    """Write audit.html, audit.json, scores.parquet and, where samples are excluded, excluded.parquet into ``out``.

    Args:
        facts: ``audit.data.DataAudit.facts``.
        inspected: ``inspection.as_json`` of the same data.
        scores: a row a training image, the most suspicious first.
        shown: the first images, (N, H, W, 3).
        out: an existing folder.
    """
    pq.write_table(scores, out / "scores.parquet")
    files = {"scores": str(out / "scores.parquet")}
    if facts["num_trusted"]:
        chosen = scores.filter(pc.less_equal(scores["q_value"], facts["rate"]).fill_null(False))
        pq.write_table(chosen, out / "excluded.parquet")
        files["excluded"] = str(out / "excluded.parquet")
    sections = [one.pruned for one in _of_data(facts, inspected, scores.slice(0, len(shown)), shown)]
    return write_page({**facts, "inspection": inspected}, sections, data_lines(facts), out) | files


def _of_data(
    facts: Mapping[str, Any], inspected: Mapping[str, Any], scores: pa.Table, shown: Pixels
) -> Iterator[Section]:
    rows = [
        (
            str(number),
            one["key"],
            one["class"] or MISSING,
            one["reason"].replace("_", " "),
            " ".join(f"{one[f'rank_{name}']:,}" for name in facts["filters"]),
            MISSING if one["p_value"] is None else f"{one['p_value']:.2g}",
            MISSING if one["q_value"] is None else f"{one['q_value']:.2g}",
            (one["caption"] or "")[:120],
        )
        for number, one in enumerate(scores.to_pylist(), 1)
    ]
    heads = ("no.", "image", "class", "most by", "ranks", "p", "q", "caption")
    yield Section(
        "Most suspicious first",
        "suspicious",
        nav="Suspicious",
        text=f"The first {len(rows)} of {facts['num_samples']:,}. Ranks are by {', '.join(facts['filters'])}. p: the "
        "smallest of the filters' split-conformal p-values times their number; q: Benjamini and Hochberg's.",
        pictures=(_sheet(shown),),
        has_titles=False,
        parts=[Section(fold="These images", tables=(audit_table(heads, rows, (1, 2, 3, 4, 7)),))],
    )
    if facts["excluded"]:
        code = (
            f'sb.train(store.ref("ingest", "{facts["artifact"].partition("/")[2]}"), spec, store=store,\n'
            f'         left_out=store.ref("filter", "{facts["excluded"].partition("/")[2]}"))'
        )
        yield Section("To train without them", "without", nav="Without them", text="No image is copied.", code=code)
    yield Section("As an ingest reads it", "read", nav="Read", lines=inspected["summary"])
    copies = inspected["duplicates"]["largest"]
    yield Section(
        "Repeated images",
        "duplicates",
        nav="Duplicates",
        text="One image under many captions is often a placeholder that a server sent in place of the image.",
        tables=(
            audit_table(
                ("repeated byte for byte", "copies", "distinct captions"),
                [(", ".join(one["names"]), f"{one['num_images']:,}", f"{one['num_captions']:,}") for one in copies],
            ),
        ),
    )
    yield Section(
        "Limits",
        "limits",
        nav="Limits",
        lines=(
            "A filter finds what is unlike the rest, or like too many of it; poisons that are neither stay.",
            "p-values hold where the trusted images could be exchanged with the honest ones of the data: the same "
            "source, the same processing, chosen at random.",
            "An encoder that was not trained on these images sees less of what poisons do.",
        ),
    )
    yield Section(
        f"Requirements ({facts['standard']})", "requirements", nav="Requirements", words=facts["requirements"]
    )
    kept = ("data", "artifact", "encoder", "filters", "num_trusted", "rate", "seed", "excluded", "cost")
    code = json.dumps({name: facts[name] for name in kept}, indent=1, ensure_ascii=False)
    yield Section("Record", "record", nav="Record", parts=[Section(fold="Seeds, keys, settings, cost", code=code)])


def _sheet(shown: Pixels) -> Picture:
    """Ten in a row, by number, drawn as one picture."""
    columns, gap = 10, 1.25
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(10.0, 1.2 * lines), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    for number, image in enumerate(shown):
        left, top = gap * (number % columns), gap * (number // columns)
        axes.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="nearest")
        axes.text(left, top - 0.03, str(number + 1), fontsize=8, color=drawing.INK)
    axes.set_xlim(0, gap * columns - gap + 1)
    axes.set_ylim(gap * lines - gap + 1, -0.2)
    return drawing.picture("suspicious", figure, "Suspicious", "By number: the most suspicious first.")
