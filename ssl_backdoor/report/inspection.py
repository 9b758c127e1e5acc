"""The page of ``ssl-backdoor inspect``: one self-contained HTML file, the contact sheet as PNG, the facts as JSON.

The look, the content-security policy and the escaping are those of a report's page.
"""

import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ssl_backdoor.data.inspection import Inspection, Shown
from ssl_backdoor.errors import replace_control_chars
from ssl_backdoor.report.cells import MISSING, Picture, Table, dense_table
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.page import Section, render_page

_COLUMNS = 6
_LONG = 30  # lines of a table that is folded


def as_json(found: Inspection) -> dict[str, Any]:
    """All that was found, but for the pixels."""
    listing = found.listing
    return {
        "layout": listing.layout,
        "summary": sentences(found),
        "questions": list(listing.questions),
        "splits": [dict(use._asdict()) for use in listing.splits],
        "classes": {name: dict(count._asdict()) for name, count in listing.classes.items()},
        "unlabelled": dict(listing.num_unlabelled._asdict()),
        "left_out": dict(listing.left_out),
        "num_rejected": listing.num_rejected,
        "rejected": [{"name": name, "reason": reason} for name, reason in listing.rejected],
        "rejected_by_reason": dict(listing.rejected_by_reason),
        "ignored": {kind: {"count": one.num, "examples": list(one.examples)} for kind, one in listing.ignored.items()},
        **found.facts,
        "contact_sheet": [_of_shown(shown) for shown in found.sheet],
    }


def _of_shown(shown: Shown) -> dict[str, Any]:
    return {name: value for name, value in shown._asdict().items() if name != "pixels"}


def sentences(found: Inspection) -> list[str]:
    """What was understood and what stands out, for people."""
    facts = found.facts
    captions, copies, hashes = facts["captions"], facts["duplicates"], facts["hashes_in_json"]
    lines = [*found.listing.sentences()]
    if facts["num_images"]:
        sizes = facts["sizes"]
        formats = ", ".join(f"{count:,} {suffix}" for suffix, count in facts["formats"].items())
        sides = " x ".join(
            f"{sizes[side]['min']:,.0f}" + f" to {sizes[side]['max']:,.0f}" * (sizes[side]["min"] < sizes[side]["max"])
            for side in ("width", "height")
        )
        least = ", the smallest {key} of {width} x {height} px".format(**sizes["smallest"]) * ("to" in sides)
        lines.append(f"{facts['num_images']:,} images decode: {formats}; {sides} px{least}")
    if captions["num_captions"]:
        chars = captions["characters"]
        lines.append(
            f"{captions['num_captions']:,} captions on {captions['num_images_with']:,} of {facts['num_images']:,} "
            f"images, {chars['median']:,.0f} characters (median; {chars['p5']:,.0f} to {chars['p95']:,.0f} for 90 %)"
        )
    else:
        lines.append("no captions")
    found_copies = {
        "surplus training images": copies["num_within_train"],
        "surplus test images": copies["num_within_test"],
        "test images that are training images too": copies["num_test_also_train"],
        "images filed under several classes": copies["num_of_several_classes"],
    }
    if any(found_copies.values()):
        counts = ", ".join(f"{count:,} {what}" for what, count in found_copies.items() if count)
        lines.append(f"byte-identical duplicates: {counts}")
    else:
        lines.append("no byte-identical duplicates")
    verdicts = {verdict: count for verdict, count in hashes.items() if isinstance(count, int)}
    if verdicts:
        lines.append(f"sha256 in json: {', '.join(f'{count:,} {verdict}' for verdict, count in verdicts.items())}")
    return [replace_control_chars(line) for line in lines]


def write_inspection(found: Inspection, name: str, out: Path) -> dict[str, str]:
    """Write inspection.html, contact_sheet.png and inspection.json into ``out``, each whole or not at all.

    Args:
        found: what was found.
        name: of the data, for people.
        out: a folder, which is made.

    Returns:
        Where each lies.
    """
    out.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(found.sheet)
    files = {
        "page": ("inspection.html", _page(found, name, sheet).encode()),
        "contact_sheet": ("contact_sheet.png", sheet.png if sheet else b""),
        "facts": ("inspection.json", json.dumps(as_json(found), ensure_ascii=False, indent=1).encode()),
    }
    places = {}
    for what, (file, data) in files.items():
        if data:
            unfinished = out / f".{file}"
            try:
                unfinished.write_bytes(data)
                os.replace(unfinished, out / file)
            finally:
                unfinished.unlink(missing_ok=True)
            places[what] = str(out / file)
    return places


def contact_sheet(sheet: Sequence[Shown]) -> Picture | None:
    """The images, each with its number, class, split and caption; None without any."""
    if not sheet:
        return None
    lines, has_captions = -(-len(sheet) // _COLUMNS), any(shown.caption for shown in sheet)
    figure = Figure(figsize=(1.75 * _COLUMNS, (2.35 if has_captions else 1.95) * lines), layout="constrained")
    for axes in (grid := figure.subplots(lines, _COLUMNS, squeeze=False)).ravel():
        axes.set_axis_off()
    for number, (axes, shown) in enumerate(zip(grid.ravel(), sheet, strict=False), 1):
        axes.imshow(shown.pixels, interpolation="nearest")
        title = drawing.plain(f"{number}  {shown.class_name or 'no class'} ({shown.split})", 26)
        axes.set_title(title, fontsize=8.5, color=drawing.INK, parse_math=False)
        text = "\n".join(textwrap.wrap(drawing.plain(shown.caption.replace("\n", " / "), 66), 24)[:3])
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=7.5, color=drawing.INK,
                  parse_math=False)  # fmt: skip
    caption = (
        f"{len(sheet)} of the images that are kept, of each class and split in turn, drawn at random: the centre of "
        "each, brought to one size. Captions in full are in the table below."
    )
    return drawing.picture("contact_sheet", figure, "Contact sheet", caption)


# -------------------------------------------------------------------------------------------------- page


def _page(found: Inspection, name: str, sheet: Picture | None) -> str:
    questions = [replace_control_chars(question) for question in found.listing.questions]
    context = {
        "name": replace_control_chars(name),
        "questions": questions,
        "sentences": [sentence for sentence in sentences(found) if sentence not in questions],
        "sections": [section for section in _sections(found, sheet) if section.tables or section.pictures],
    }
    return render_page("inspection.html", context)


def _sections(found: Inspection, sheet: Picture | None) -> Iterator[Section]:
    listing, facts = found.listing, found.facts
    if sheet is not None:
        heads = ("no.", "image", "split", "class", "px", "caption")
        rows = [
            (str(number), one.key, one.split, one.class_name or MISSING, f"{one.width} x {one.height}", one.caption)
            for number, one in enumerate(found.sheet, 1)
        ]
        below = Section(fold="These images and their captions", tables=(_table(heads, rows, text=(1, 2, 3, 5)),))
        yield Section("Contact sheet", "sheet", nav="Contact sheet", pictures=(sheet,), has_titles=False, parts=[below])
    yield _foldable(
        "Splits",
        ("named in", "word", "is used as", "images"),
        ((use.where, use.word, use.split, f"{use.num_images:,}") for use in listing.splits),
        text=(1, 2),
        note="Which word of the names was taken for a split. Unnamed images train. "
        "To map words: --set 'dataset.splits={...}'.",
    )
    classes = [(name, f"{count.train:,}", f"{count.test:,}") for name, count in listing.classes.items()]
    if any(listing.num_unlabelled):
        classes.append(("(no class)", f"{listing.num_unlabelled.train:,}", f"{listing.num_unlabelled.test:,}"))
    yield _foldable("Classes", ("class", "training images", "test images"), classes)
    yield from _images(facts)
    yield from _captions(facts["captions"])
    left_out = [(f"split {split}", f"{count:,}", "not used") for split, count in listing.left_out.items()]
    reasons = [(reason, f"{count:,}", _example(listing.rejected, reason)) for reason, count in
               listing.rejected_by_reason.items()]  # fmt: skip
    ignored = [(kind, f"{one.num:,}", ", ".join(one.examples)) for kind, one in listing.ignored.items()]
    yield _foldable("Rejected images", ("reason", "images", "such as"), [*reasons], text=(2,))
    yield _foldable(
        "Files and splits that are passed over", ("kind", "files", "such as"), [*ignored, *left_out], text=(2,)
    )
    yield from _duplicates(facts["duplicates"])
    hashes = [(verdict, f"{count:,}") for verdict, count in facts["hashes_in_json"].items() if isinstance(count, int)]
    differing = ", ".join(facts["hashes_in_json"]["examples_of_different"])
    yield _foldable(
        "Hashes that came with the images",
        ("sha256 of the json", "images"),
        hashes,
        note="A downloader's sha256 is of the file before it was resized or encoded again: a difference alone is no "
        "fault. Perceptually equal: at most 10 of 64 bits of a perceptual hash in the json differ. Without one, images "
        "are not comparable." + (f" Different: {differing}." if differing else ""),
    )


def _images(facts: Mapping[str, Any]) -> Iterator[Section]:
    sizes = facts["sizes"]
    if not facts["num_images"]:
        return
    heads = ("of an image", "least", "5 %", "median", "95 %", "largest")
    rows = [
        (name, *(f"{value:,.0f}" for value in quantiles.values()))
        for name, quantiles in (
            ("width, px", sizes["width"]), ("height, px", sizes["height"]), ("bytes", facts["bytes"]["of_an_image"])
        )
    ]  # fmt: skip
    ends = "; ".join(
        f"the {name} {one['key']}, {one['width']} x {one['height']} px"
        for name, one in (("smallest", sizes["smallest"]), ("largest", sizes["largest"]))
    )
    formats = [(suffix, f"{count:,}") for suffix, count in facts["formats"].items()]
    common = [(size, f"{count:,}") for size, count in sizes["most_common"].items()]
    yield Section(
        "Images",
        "images",
        nav="Images",
        text=f"{facts['num_images']:,} images that decode, {facts['bytes']['total']:,} bytes; {ends}.",
        tables=(
            _table(heads, rows),
            _table(("format, told by its bytes", "images"), formats),
            _table(("most common size, px", "images"), common),
        ),
    )


def _captions(captions: Mapping[str, Any]) -> Iterator[Section]:
    if not captions["num_captions"]:
        return
    heads = ("of a caption", "least", "5 %", "median", "95 %", "largest")
    row = ("characters", *(f"{value:,.0f}" for value in captions["characters"].values()))
    repeated = [(one["text"], f"{one['count']:,}") for one in captions["most_repeated"]]
    longest = captions["longest"]
    tables = [_table(heads, [row])]
    tables += [_table(("most repeated caption", "times"), repeated)] if repeated else []
    yield Section(
        "Captions",
        "captions",
        nav="Captions",
        text=f"{captions['num_captions']:,} captions on {captions['num_images_with']:,} images, as cleaned; "
        f"{captions['num_distinct_of_an_image']:,} images' captions are distinct. "
        f"The longest, of {longest['key']}: {longest['text']}",
        tables=tuple(tables),
    )


def _duplicates(copies: Mapping[str, Any]) -> Iterator[Section]:
    if not copies["largest"]:
        return
    rows = [
        ("training images that repeat an earlier one", f"{copies['num_within_train']:,}"),
        ("test images that repeat an earlier one", f"{copies['num_within_test']:,}"),
        ("test images that are training images too", f"{copies['num_test_also_train']:,}"),
        ("distinct images filed under several classes", f"{copies['num_of_several_classes']:,}"),
    ]
    groups = [
        (", ".join(one["names"]), f"{one['num_images']:,}", f"{one['num_captions']:,}") for one in copies["largest"]
    ]
    tables = (
        _table(("byte for byte the same", "images"), rows),
        _table(("most often repeated", "copies", "distinct captions"), groups),
    )
    text = "One image under many captions is often a placeholder that a server sent in place of the image."
    yield Section("Duplicates", "duplicates", nav="Duplicates", text=text, tables=tables)


def _foldable(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (), note: str = ""
) -> Section:
    """A section of one table, folded where it is long; without rows it has none."""
    shown = [*rows]
    fold = f"{len(shown):,} lines" if len(shown) > _LONG else ""
    tables = (_table(heads, shown, text),) if shown else ()
    return Section(title, title.split()[0].lower(), nav=title.split()[0], fold=fold, text=note, tables=tables)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = ()) -> Table:
    """Without what would turn the text around: names and captions are anybody's."""
    return dense_table(heads, [[replace_control_chars(cell) for cell in row] for row in rows], text)


def _example(rejected: Sequence[tuple[str, str]], kind: str) -> str:
    return next((name for name, reason in rejected if reason.startswith(kind[:12].rstrip("N"))), "")
