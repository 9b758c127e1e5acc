"""The page of an audit: one self-contained HTML file, with its facts as JSON beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ssl_backdoor.errors import replace_control_chars
from ssl_backdoor.report.cells import MISSING, Picture, Table, dense_table
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.page import Section, render_page

Pixels = NDArray[np.uint8]
AREAS = (0.01, 0.02, 0.05, 0.10, 0.25, 1.0)
CONTROL, SUSPECT, PLANTED = "#6b7680", "#d55e00", "#0072b2"


def write_encoder_audit(facts: Mapping[str, Any], pictures: Mapping[str, Pixels], out: Path) -> dict[str, str]:
    """Write audit.html and audit.json into ``out``, an existing folder; where each lies.

    Args:
        facts: ``audit.encoder.Audit.facts``.
        pictures: uint8 (N, H, W, 3) each: before, after, trigger (mask and pattern), nearest; none where nothing was
            recovered.
        out: an existing folder.
    """
    sections = [one.pruned for one in _sections(facts, pictures)]
    return write_page(facts, sections, [facts["verdict"]["sentence"], *facts.get("others", [])], out)


def write_page(
    facts: Mapping[str, Any], sections: Sequence[Section], lines: Sequence[str], out: Path
) -> dict[str, str]:
    """audit.html and audit.json in ``out``, with ``lines`` on top: where each lies."""
    context = {
        "what": facts["audit"],
        "name": replace_control_chars(str(facts["name"])),
        "lines": [replace_control_chars(line) for line in lines],
        "left_out": [replace_control_chars(line) for line in facts.get("left_out", ())],
        "sections": [section for section in sections if section.is_filled],
    }
    files = {
        "page": ("audit.html", render_page("audit.html", context)),
        "facts": ("audit.json", json.dumps(facts, indent=1, ensure_ascii=False)),
    }
    for name, text in files.values():
        (out / name).write_text(text, encoding="utf-8")
    return {what: str(out / name) for what, (name, _) in files.items()}


def _sections(facts: Mapping[str, Any], pictures: Mapping[str, Pixels]) -> Iterator[Section]:
    if "score" in facts:
        yield Section(
            "Smallest trigger, among siblings",
            "null",
            nav="Siblings",
            text="DECREE searches for the smallest patch under which the features of all images agree; it counts where "
            "it holds on images that were not searched on. Any network has one: it is compared with siblings. "
            + _p_words(facts),
            pictures=tuple(_null(facts)),
            has_titles=False,
            parts=[Section(fold="Every score", tables=(_scores(facts),))],
        )
        yield Section(
            "What would have been found",
            "power",
            nav="Power",
            text="A backdoor was planted on trial into copies of this encoder (BadEncoder, a grid in one corner, "
            "towards a cluster of your images), and each copy was judged as the encoder itself. Found: p at most "
            f"{facts['rate']:.2g} among the same siblings.",
            tables=(_planted(facts),),
            pictures=tuple(_power(facts["power"])),
            has_titles=False,
        )
    if pull := facts.get("pull"):
        yield from _target(pull, pictures)
    if ordinary := facts.get("ordinary_patches"):
        yield Section(
            "Ordinary patches",
            "ordinary",
            nav="Ordinary patches",
            text=f"{len(ordinary['null'])} random patches in four styles on 1 to 10 % of the area, anywhere. An "
            "encoder that gives way to such is sensitive, with or without an attacker. "
            + (
                f"Largest deviation {ordinary['score']:.1f}, p = {ordinary['p_value']:.2g} among "
                f"{ordinary['num_siblings']} siblings."
                if ordinary["p_value"] is not None
                else f"Largest deviation {ordinary['score']:.1f}; without siblings there is no p-value."
            ),
            pictures=(_ordinary(ordinary, facts.get("pull")),),
            has_titles=False,
        )
    yield from _record(facts)


def _p_words(facts: Mapping[str, Any]) -> str:
    num = len(facts["siblings"])
    if facts["p_value"] is None:
        return "There are none here, so no p-value is possible."
    return (
        f"p = (1 + siblings with a patch at most as large) / ({num} + 1) = {facts['p_value']:.2g}; the smallest "
        f"possible is {1 / (num + 1):.2g}."
    )


def share_of(value: float | None) -> str:
    """In percent."""
    return MISSING if value is None else f"{100 * value:.3g} %"


def _size(score: float | None) -> str:
    return "not found" if score is None else share_of(-score)


def _scores(facts: Mapping[str, Any]) -> Table:
    own = _size(facts["score"]) if facts["is_finished"] else "not finished"
    rows = [("the encoder", own), *((one["name"], _size(one["score"])) for one in facts["siblings"])]
    return audit_table(("encoder", "smallest patch, share of the image"), rows)


def _null(facts: Mapping[str, Any]) -> Iterator[Picture]:
    """Where the encoder lies among siblings and copies, and how features agree under patches of any area."""
    figure = Figure(figsize=(10.0, 3.2), layout="constrained")
    left, right = drawing.panels(figure, 2)
    sizes = [-one["score"] for one in facts["siblings"] if one["score"] is not None]
    planted = [-one["score"] for one in facts["planted"] if one["score"] is not None and not one["failure"]]
    largest = max([*sizes, *planted, -(facts["score"] or 0.0), 0.05])
    bins = np.linspace(0, 1.05 * largest, 24).tolist()
    left.hist([sizes, planted], bins=bins, stacked=True, color=[CONTROL, PLANTED],
              label=["siblings", "planted on trial"])  # fmt: skip
    if facts["score"] is not None:
        left.axvline(-facts["score"], color=SUSPECT, linewidth=2.2, label="this encoder")
    left.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g} %")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylim(top=1.35 * left.get_ylim()[1])
    left.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper left")
    drawing.headed(left, "Smallest patch, share of the image")
    curve = facts["card"].get("cosine_by_area", {})
    right.plot([float(area) for area in curve], list(curve.values()), "o-", color=SUSPECT, label="best patch found")
    if "clean_cosine" in facts["card"]:
        right.axhline(facts["card"]["clean_cosine"], color=CONTROL, linestyle="--", label="no patch")
    right.set_xscale("log")
    right.set_xticks(AREAS, [f"{100 * area:g} %" for area in AREAS])
    right.minorticks_off()
    right.set_xlim(0.009, 1.1)
    right.set_ylim(min(-0.05, *curve.values()) if curve else -0.05, 1.05)
    right.legend(frameon=False, fontsize=8.5)
    drawing.headed(right, "Agreement of features, by area")
    caption = (
        f"Left: {len(sizes)} siblings and {len(planted)} copies in which a patch was found. Right: mean pairwise "
        "cosine of held-out images under the best patch up to that share of the image."
    )
    yield drawing.picture("null", figure, "Siblings", caption)


def _planted(facts: Mapping[str, Any]) -> Table:
    by_area = {one["area"]: one for one in facts["power"]}
    rows = []
    for area in sorted({one["area"] for one in facts["planted"]}):
        here = [one for one in facts["planted"] if one["area"] == area]
        power = by_area.get(area)
        failures = "; ".join(dict.fromkeys(one["failure"] for one in here if one["failure"]))
        sizes = ", ".join(_size(one["score"]) for one in here if not one["failure"])
        rows.append(
            (
                share_of(area),
                f"{power['num_found']} of {power['num_planted']}" if power else "no p-value",
                f"{share_of(power['low'])} to {share_of(power['high'])}" if power else MISSING,
                sizes or MISSING,
                failures,
            )
        )
    return audit_table(
        ("area of the planted patch", "found", "95 % interval", "smallest patches", "could not be planted"), rows, (4,)
    )


def _power(power: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    if not power:
        return
    figure = Figure(figsize=(10.0, 2.4), layout="constrained")
    (axes,) = drawing.panels(figure, 1)
    areas, shares = [one["area"] for one in power], [one["share"] for one in power]
    for one in power:
        axes.plot([one["area"]] * 2, [one["low"], one["high"]], color=PLANTED, linewidth=2.2)
    axes.plot(areas, shares, "o-", color=PLANTED)
    axes.axhline(0.8, color=CONTROL, linestyle="--", linewidth=1)
    axes.set_ylim(-0.05, 1.05)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g} %")
    axes.yaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g} %")
    drawing.headed(axes, "Planted backdoors found, by area")
    yield drawing.picture("power", figure, "Power", "Bars: Wilson's 95 % intervals. Dashed: 80 %.")


def _target(pull: Mapping[str, Any], pictures: Mapping[str, Pixels]) -> Iterator[Section]:
    def share(value: float | None) -> str:
        return "N.E." if value is None else share_of(value)

    rows = [(one["name"], share(one["triggered"]), share(one["without"]), one["detail"]) for one in pull["interfaces"]]
    classes = pull["classes"]
    known = ", ".join(
        f"{classes.count(name)} of {name}" for name in sorted(set(classes), key=lambda one: -classes.count(one))
    )
    yield Section(
        "The recovered trigger, and where it leads",
        "trigger",
        nav="Trigger",
        text=f"On held-out images features agree with a mean cosine of {pull['agreement']:.2f} under it, "
        f"{pull['clean_agreement']:.2f} without. Nearest to where it leads: {', '.join(pull['nearest'])}"
        + (f"; by class {known}." if known else "."),
        tables=(audit_table(("through", "under it", "without it", "of the held-out images"), rows, (3,)),),
        pictures=(_examples(pictures),),
        has_titles=False,
        caption="N.E.: not evaluable here. Siblings' triggers lead somewhere too: this alone is no evidence.",
    )


def _examples(pictures: Mapping[str, Pixels]) -> Picture:
    shown = {
        "held out": pictures["before"],
        "under it": pictures["after"],
        "nearest": pictures["nearest"],
        "mask, pattern": pictures["trigger"],
    }
    columns = max(len(images) for images in shown.values())
    figure = Figure(figsize=(10.0, 1.02 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for line, (name, images) in zip(grid, shown.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image, interpolation="nearest")
        line[0].set_title(name, loc="left", fontsize=8.5, color=drawing.INK)
    caption = (
        "Ten held-out images, the same under the recovered trigger, the images nearest to where it leads, and its mask "
        "and pattern."
    )
    return drawing.picture("trigger", figure, "Trigger", caption)


def _ordinary(ordinary: Mapping[str, Any], pull: Mapping[str, Any] | None) -> Picture:
    figure = Figure(figsize=(10.0, 2.4), layout="constrained")
    (axes,) = drawing.panels(figure, 1)
    axes.hist(ordinary["null"], bins=30, color=CONTROL, label="ordinary patches")
    if pull is not None:
        axes.axvline(pull["agreement"] - ordinary["clean_cosine"], color=SUSPECT, linewidth=2.2,
                     label="the recovered trigger")  # fmt: skip
    axes.legend(frameon=False, fontsize=8.5)
    drawing.headed(axes, "Mean cosine under a patch, minus the same without it")
    return drawing.picture(
        "ordinary", figure, "Ordinary patches", "The recovered trigger was searched for, they were not."
    )


def _record(facts: Mapping[str, Any]) -> Iterator[Section]:
    """What was read, what it cost, what it cannot say."""
    rows = [(one["file"], one["format"], f"{one['bytes']:,}", one["sha256"]) for one in facts["files"]]
    yield Section(
        "File", "file", nav="File", tables=(audit_table(("file", "format", "bytes", "sha256"), rows, (1, 3)),)
    )
    words = {}
    if loading := facts.get("loading"):
        words["Loaded with network"] = loading["network"]
        words["Remarks of the loader"] = "; ".join(loading["remarks"]) or "none"
        if loading.get("mean"):
            words["Normalisation"] = (
                f"mean {loading['mean']}, standard deviation {loading['std']}, as the file's library says"
            )
    if images := facts.get("images"):
        shift = images["norm_shift"]
        words["Images"] = (
            f"{images['num_test']:,} to search and check on, of {images['side_px']} px; mean {images['image_mean']}, "
            f"standard deviation {images['image_std']}"
        )
        words["First BatchNorm"] = (
            "there is none"
            if shift is None
            else f"the images lie {shift:.2f} standard deviations (median channel) from what it remembers"
        )
    yield Section("What was read", "read", nav="Read", words=words or None)
    yield Section("Limits", "limits", nav="Limits", lines=facts.get("limits", ()))
    yield Section(
        f"Requirements ({facts['standard']})", "requirements", nav="Requirements", words=facts["requirements"]
    )
    kept = ("encoder", "artifact", "images", "detector", "rate", "seed", "budget_s", "cost", "siblings")
    code = json.dumps({name: facts[name] for name in kept if name in facts}, indent=1, ensure_ascii=False)
    cost = f"{facts['cost']['seconds']:.0f} s of a budget of {facts['budget_s']:.0f} s"
    yield Section(
        "Cost and record", "record", nav="Record", text=cost, parts=[Section(fold="Seeds, keys, settings", code=code)]
    )


def audit_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> Table:
    """Without what would turn the text around."""
    return dense_table(heads, [[replace_control_chars(cell) for cell in row] for row in rows], text)
