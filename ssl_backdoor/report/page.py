"""Writes the report: one self-contained HTML page, its Markdown twin, the figures and the numbers.

Everything that comes from data, specs or file names is escaped: by Jinja2 in HTML, by ``markdown`` in Markdown.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.identity import canonical
from ssl_backdoor.report.aggregate import Row, aggregate, find, per_pair
from ssl_backdoor.report.answer import answer
from ssl_backdoor.report.figures import Example, Picture, draw_all
from ssl_backdoor.report.runs import Scored, variants_of
from ssl_backdoor.report.text import headline_quantities, to_json_measurements
from ssl_backdoor.report.view import (
    GLOSSARY,
    POISON_COLUMNS,
    cost_table,
    excess_table,
    full_table,
    headline_table,
    pair_table,
    poison_table,
)
from ssl_backdoor.specs import ReportSpec

ROWS = pa.schema(
    [
        ("name", pa.string()),
        ("arm", pa.string()),
        ("variant", pa.string()),
        ("condition", pa.string()),
        ("probe", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("definition", pa.string()),
        ("interval", pa.string()),
    ]
)


class Verbatim(str):
    """Text that Markdown shows inside a fence and that must not be escaped."""

    __slots__ = ()


def markdown(value: Any) -> str:
    """``value`` as Markdown that shows it literally, on one line."""
    if isinstance(value, Verbatim):
        return value
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def write_report(
    spec: ReportSpec,
    scored: Sequence[Scored],
    examples: Sequence[Example],
    poison_summaries: Mapping[str, Mapping[str, Any]],
    out: Path,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Writes report.html, report.md, measurements.parquet, measurements.json and figures/*.png into ``out``.

    Args:
        spec: the question and the runs.
        scored: every encoder of the runs, measured; the order is that of the page.
        examples: training images before and after poisoning.
        poison_summaries: summary of each poison stage by a name for people.
        out: an existing folder.
        seconds: wall-clock by stage, shown as the cost.

    Returns:
        ``question``, ``answer`` and ``headline``, the key numbers by ``name/arm/condition/probe``.

    Raises:
        SpecError: two results for one arm, variant, pair and seed.
    """
    rows, pairs = aggregate(scored), per_pair(scored)
    pictures = draw_all(scored, rows, pairs, examples)
    full, definitions = full_table(rows)
    spec_json = json.dumps(canonical(spec), indent=1, sort_keys=True, ensure_ascii=False)
    context = {
        "spec": spec,
        "answer": (sentence := answer(rows, pairs, spec.note)),
        "headline": headline_table(rows),
        "sides": [headline_table(rows, variant) for variant in variants_of(scored) if variant],
        "excesses": [table for variant in variants_of(scored) if (table := excess_table(rows, variant)).lines],
        "pictures": [(picture, base64.b64encode(picture.png).decode()) for picture in pictures],
        "pairs": pair_table(rows, pairs),
        "poison_columns": POISON_COLUMNS,
        "poisons": poison_table(poison_summaries),
        "rows": full,
        "definitions": definitions,
        "glossary": GLOSSARY,
        "costs": cost_table(scored, seconds or {}),
        "spec_json": spec_json,
        "spec_fence": Verbatim(spec_json.replace("<", "\\u003c")),
        "verbatim": Verbatim,
    }
    _write_pages(context, out)
    _write_figures(pictures, out / "figures")
    _write_numbers(rows, out)
    return {"question": spec.question, "answer": sentence, "headline": headline(rows)}


def _write_pages(context: Mapping[str, Any], out: Path) -> None:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"loader": loader, "undefined": jinja2.StrictUndefined, "trim_blocks": True}
    html = jinja2.Environment(autoescape=True, lstrip_blocks=True, **options)
    text = jinja2.Environment(autoescape=False, lstrip_blocks=True, finalize=markdown, **options)  # noqa: S701  escaped by finalize
    for environment, name in ((html, "report.html"), (text, "report.md")):
        (out / name).write_text(environment.get_template(f"{name}.j2").render(context) + "\n", encoding="utf-8")


def _write_figures(pictures: Sequence[Picture], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)


def headline(rows: Sequence[Row]) -> dict[str, float]:
    """The key numbers of the main variant by ``name/arm/condition/probe``; what is not defined is left out."""
    numbers = {}
    for quantity in headline_quantities(rows):
        for arm in ("control", "suspect", "student"):
            for suffix in ("", "_excess", "_removed_frac"):
                row = find(rows, f"{quantity.name}{suffix}", arm, quantity.condition, quantity.probe)
                if row is not None and row.value is not None:
                    numbers[f"{row.name}/{arm}/{row.condition}/{row.probe}"] = row.value
    return numbers


def _write_numbers(rows: Sequence[Row], out: Path) -> None:
    table = pa.Table.from_pylist([row._asdict() for row in rows], schema=ROWS)
    pq.write_table(table, out / "measurements.parquet")
    text = json.dumps(to_json_measurements(rows), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "measurements.json").write_text(text + "\n", encoding="utf-8")
