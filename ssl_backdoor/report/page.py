"""Writes the report: one self-contained HTML page, its Markdown twin, the figures and the numbers.

Everything that comes from data, specs or file names is escaped: by Jinja2 in HTML, by ``markdown`` in Markdown.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.errors import replace_control_chars
from ssl_backdoor.identity import canonical
from ssl_backdoor.report.aggregate import PairRow, Row, aggregate, find, per_pair
from ssl_backdoor.report.answer import answer
from ssl_backdoor.report.comparison_view import COMPARED, COSTS
from ssl_backdoor.report.figures import Example, Picture, draw_all
from ssl_backdoor.report.runs import Scored, variants_of
from ssl_backdoor.report.sweep import curves_of, sweep, swept
from ssl_backdoor.report.sweep_answer import sweep_answer
from ssl_backdoor.report.sweep_figures import Drawn, draw
from ssl_backdoor.report.sweep_view import GLOSSARY as SWEEP_GLOSSARY
from ssl_backdoor.report.sweep_view import figure_table
from ssl_backdoor.report.table_page import (
    STEALTH,
    Matrix,
    matrix_headline,
    matrix_of,
    matrix_summary,
    pictured_variant,
    stealth_lines,
    write_tables,
)
from ssl_backdoor.report.table_view import GLOSSARY as TABLE_GLOSSARY
from ssl_backdoor.report.table_view import interval_definition
from ssl_backdoor.report.text import headline_quantities, to_json_measurements
from ssl_backdoor.report.view import (
    GLOSSARY,
    POISON_COLUMNS,
    Table,
    cost_table,
    excess_table,
    full_table,
    headline_table,
    pair_table,
    poison_table,
)
from ssl_backdoor.specs import FigureSpec, ReportSpec
from ssl_backdoor.tables import MEASUREMENTS

if TYPE_CHECKING:
    from ssl_backdoor.report.stealth import Stealth

ROWS = pa.schema(
    [
        MEASUREMENTS.field("name"),
        ("arm", pa.string()),
        ("variant", pa.string()),
        *list(MEASUREMENTS)[1:],
        ("interval", pa.string()),
    ]
)
"""A Row."""


class Verbatim(str):
    """Text that Markdown shows inside a fence and that must not be escaped."""

    __slots__ = ()


def markdown(value: Any) -> str:
    """``value`` as Markdown that shows it literally, on one line."""
    if isinstance(value, Verbatim):
        return value
    text = " ".join(replace_control_chars(str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def write_report(
    spec: ReportSpec,
    scored: Sequence[Scored],
    examples: Sequence[Example],
    poison_summaries: Mapping[str, Mapping[str, Any]],
    out: Path,
    seconds: Mapping[str, float] | None = None,
    *,
    stealth: Mapping[str, "Stealth"] | None = None,
) -> dict[str, Any]:
    """Writes report.html, report.md, measurements.parquet, measurements.json and figures/ into ``out``.

    Runs under an attack that ``spec.figures`` names are laid out along the figures' axes (PNG, and the data behind it
    as CSV); all others are paired with their controls, and laid out in the tables that ``spec.tables`` names.

    Args:
        spec: the question and the runs.
        scored: every encoder of the runs, measured; the order is that of the page.
        examples: training images before and after poisoning.
        poison_summaries: summary of each poison stage by a name for people.
        out: an existing folder.
        seconds: wall-clock by stage, shown as the cost.
        stealth: how visible the poisons of each kind of attack are.

    Returns:
        ``question``, ``answer`` and ``headline``, the key numbers by ``name/arm/condition/probe``; where there are
        tables, ``tables`` as ``matrix_summary`` gives them.

    Raises:
        SpecError: two results for one arm, variant, pair and seed, or points that mix settings (see ``sweep``).
    """
    found = _Found.of(spec, scored)
    drawn = [(figure, draw(figure, found.points, found.swept)) for figure in spec.figures]
    pictures = draw_all(found.tables, found.paired, found.pairs, examples, pictured_variant(spec, found.tables))
    sentence = _answer(spec, found)
    context = _context(spec, found) | {
        "answer": sentence,
        "sweeps": [_section(figure, one, found.points) for figure, one in drawn],
        "stealth": stealth_lines(stealth or {}),
        "pictures": [(picture, base64.b64encode(picture.png).decode()) for picture in pictures],
        "poisons": poison_table(poison_summaries),
        "costs": cost_table(found.tables, seconds or {}),
    }
    _write_pages(context, out)
    _write_figures(pictures, [one for _, one in drawn if one], out / "figures")
    if found.matrix:
        _write_figures((), found.matrix.drawn, out / "figures")
        write_tables(found.matrix, out / "figures")
    _write_numbers((*found.paired, *found.points), out)
    return {"question": spec.question, "answer": sentence} | _numbers(spec, found)


class _Found(NamedTuple):
    """The encoders apart, and their rows."""

    tables: list[Scored]
    swept: list[Scored]
    paired: tuple[Row, ...]
    pairs: tuple[PairRow, ...]
    points: tuple[Row, ...]
    matrix: Matrix | None

    @classmethod
    def of(cls, spec: ReportSpec, scored: Sequence[Scored]) -> "_Found":
        tables = [one for one in scored if not swept(spec.figures, one)]
        curves = [one for one in scored if swept(spec.figures, one)]
        rows = aggregate(tables, spec.unit)
        matrix = matrix_of(spec, tables, rows) if spec.tables else None
        return cls(tables, curves, rows, per_pair(tables), sweep(spec.figures, curves), matrix)


def _context(spec: ReportSpec, found: _Found) -> dict[str, Any]:
    """What the templates read besides pictures, poisons and costs."""
    paired = [row for row in found.paired if found.matrix is None or not row.name.startswith("false_positives:")]
    full, definitions = full_table((*paired, *found.points))
    spec_json = json.dumps(canonical(spec), indent=1, sort_keys=True, ensure_ascii=False)
    variants = variants_of(found.tables)
    glossary = dict((*GLOSSARY, *(SWEEP_GLOSSARY if spec.figures else ()), *(TABLE_GLOSSARY if spec.tables else ())))
    if spec.unit == "seed":
        glossary |= [interval_definition(spec.unit)]
    return {
        "spec": spec,
        "paired": bool(found.tables) or not spec.figures,
        "headline": headline_table(found.paired),
        "sides": [headline_table(found.paired, variant) for variant in variants if variant],
        "excesses": [table for variant in variants if (table := excess_table(found.paired, variant)).lines],
        "pairs": pair_table(found.paired, found.pairs),
        "poison_columns": POISON_COLUMNS,
        "rows": full,
        "definitions": definitions,
        "glossary": tuple(glossary.items()),
        "matrix": found.matrix,
        "pictured": pictured_variant(spec, found.tables),
        "compared": COMPARED,
        "cost_heads": COSTS,
        "stealth_heads": STEALTH,
        "heading": "h3" if found.matrix else "h2",
        "spec_json": spec_json,
        "spec_fence": Verbatim(spec_json.replace("<", "\\u003c")),
        "verbatim": Verbatim,
    }


def _answer(spec: ReportSpec, found: _Found) -> str:
    """Of the pairs, then of the figures, each as one sentence."""
    last = sweep_answer(spec.figures, found.points)
    if last and not found.tables:
        return f"{last[0].upper()}{last[1:]}"
    first = found.matrix.answer if found.matrix else answer(found.paired, found.pairs, spec.note)
    return f"{first[:-1]}; {last}" if last else first


class _Section(NamedTuple):
    """One figure of the page."""

    figure: FigureSpec
    drawn: Drawn | None
    data: str
    """The picture in base64."""
    table: Table


def _section(figure: FigureSpec, drawn: Drawn | None, points: Sequence[Row]) -> _Section:
    data = base64.b64encode(drawn.picture.png).decode() if drawn else ""
    return _Section(figure, drawn, data, figure_table(figure, points))


def sweep_headline(figures: Sequence[FigureSpec], points: Sequence[Row]) -> dict[str, float]:
    """What the figures draw, by ``name/arm/condition/probe``; an arm of a side series reads ``student[series]``."""
    return {
        f"{row.name}/{row.arm}{f'[{row.variant}]' if row.variant else ''}/{row.condition}/{row.probe}": row.value
        for figure in figures
        for curve in curves_of(figure, points)
        for _, row in curve.points
        if row.value is not None
    }


def _write_pages(context: Mapping[str, Any], out: Path) -> None:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"loader": loader, "undefined": jinja2.StrictUndefined, "trim_blocks": True}
    html = jinja2.Environment(autoescape=True, lstrip_blocks=True, **options)
    text = jinja2.Environment(autoescape=False, lstrip_blocks=True, finalize=markdown, **options)  # noqa: S701  escaped by finalize
    for environment, name in ((html, "report.html"), (text, "report.md")):
        (out / name).write_text(environment.get_template(f"{name}.j2").render(context) + "\n", encoding="utf-8")


def _write_figures(pictures: Sequence[Picture], drawn: Sequence[Drawn], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for picture in (*pictures, *(one.picture for one in drawn)):
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    for one in drawn:
        (folder / f"{one.picture.name}.csv").write_text(one.data, encoding="utf-8")


def _numbers(spec: ReportSpec, found: _Found) -> dict[str, Any]:
    """The key numbers, and where there are tables, their comparisons."""
    numbers = headline(found.paired) | sweep_headline(spec.figures, found.points)
    if found.matrix is None:
        return {"headline": numbers}
    numbers |= matrix_headline(found.matrix, found.paired)
    return {"headline": numbers, "tables": matrix_summary(found.matrix)}


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
