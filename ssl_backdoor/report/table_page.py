"""All that the tables put on the page: their numbers, comparisons, figures, cost and sentence."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssl_backdoor.report.aggregate import Row
from ssl_backdoor.report.comparison_view import (
    comparison_csv,
    comparison_lines,
    comparison_title,
    comparisons_json,
    cost_lines,
    table_text,
    unit_note,
)
from ssl_backdoor.report.comparisons import Comparison, compare, key_of
from ssl_backdoor.report.neighbour_figure import neighbours
from ssl_backdoor.report.runs import Scored, indexed, variants_of
from ssl_backdoor.report.sweep_figures import Drawn
from ssl_backdoor.report.table_answer import table_answer
from ssl_backdoor.report.table_figures import dots, heat
from ssl_backdoor.report.table_view import Evidence, PaperTable, paper_csv, paper_table, title_of
from ssl_backdoor.report.text import MISSING
from ssl_backdoor.specs import ReportSpec, TableSpec

if TYPE_CHECKING:
    from ssl_backdoor.report.stealth import Stealth

STEALTH = ("poisons read", "SSIM", "PSNR (dB)", "unchanged", "area of the trigger")


class Shown(NamedTuple):
    """A figure of the page with its picture in base64."""

    drawn: Drawn
    data: str

    @classmethod
    def of(cls, drawn: Drawn) -> "Shown":
        """``drawn``, encoded."""
        return cls(drawn, base64.b64encode(drawn.picture.png).decode())


class Section(NamedTuple):
    """One table of the page."""

    table: TableSpec
    shown: PaperTable
    comparisons: tuple[Comparison, ...]
    lines: tuple[tuple[Comparison, tuple[str, ...]], ...]
    """Each comparison as text."""
    title: str
    """The table's, with its probe."""
    compared: str
    """What is compared."""
    note: str
    """What intervals are over."""
    figures: tuple[Shown, ...]
    csv: Mapping[str, str]
    """Numbers by file name."""


class Matrix(NamedTuple):
    """Every table, and what they share."""

    sections: tuple[Section, ...]
    sheet: Shown | None
    """Nearest neighbours of triggered images."""
    costs: tuple[tuple[str, ...], ...]
    answer: str

    @property
    def drawn(self) -> tuple[Drawn, ...]:
        """Every figure."""
        return tuple(one.drawn for one in (*(f for s in self.sections for f in s.figures), self.sheet) if one)


def matrix_of(spec: ReportSpec, scored: Sequence[Scored], rows: Sequence[Row]) -> Matrix:
    """The tables of ``spec`` from the encoders ``scored`` and their rows.

    Raises:
        SpecError: two results for one arm, variant, pair and seed.
    """
    evidence = Evidence(indexed(scored), rows, spec.unit)
    sections = tuple(_section(table, evidence) for table in spec.tables)
    sheet = neighbours([row for table in spec.tables for row in table.rows], scored)
    answer = table_answer([(one.table, one.comparisons) for one in sections], rows, len(spec.missing))
    return Matrix(sections, Shown.of(sheet) if sheet else None, cost_lines(scored), answer)


def _section(table: TableSpec, evidence: Evidence) -> Section:
    comparisons = compare(table, evidence.encoders, evidence.unit)
    drawings = (dots(table, comparisons, evidence), heat(table, comparisons))
    return Section(
        table=table,
        shown=paper_table(table, evidence),
        comparisons=comparisons,
        lines=comparison_lines(comparisons),
        title=title_of(table),
        compared=comparison_title(comparisons) if comparisons else "",
        note=unit_note(comparisons),
        figures=tuple(Shown.of(drawn) for drawn in drawings if drawn),
        csv={
            f"{table.name}.csv": paper_csv(table, evidence),
            f"{table.name}_comparisons.csv": comparison_csv(comparisons),
        },
    )


def write_tables(matrix: Matrix, folder: Path) -> None:
    """Write the numbers of the tables into ``folder``, as CSV."""
    for section in matrix.sections:
        for name, text in section.csv.items():
            (folder / name).write_text(text, encoding="utf-8")


def matrix_summary(matrix: Matrix) -> list[dict[str, Any]]:
    """Of each table: name, title, text for a terminal, comparisons as JSON data."""
    return [
        {
            "name": one.table.name,
            "title": one.title,
            "text": table_text(one.table, one.shown, one.comparisons),
            "comparisons": comparisons_json(one.comparisons),
        }
        for one in matrix.sections
    ]


def matrix_headline(matrix: Matrix, rows: Sequence[Row]) -> dict[str, float]:
    """Cells, differences and Holm's p by ``name/arm[variant]/condition/probe``; of tables that share one, the first."""
    numbers: dict[str, float] = {}
    for section in matrix.sections:
        variants = {row.variant for row in section.table.rows}
        keys = {
            key_of(section.table, name, condition)
            for name in section.table.measures
            for condition in ("clean", "triggered")
        }
        for row in rows:
            if row.variant in variants and row.value is not None and (row.name, row.condition, row.probe) in keys:
                numbers[f"{row.name}/{_arm(row.arm, row.variant)}/{row.condition}/{row.probe}"] = row.value
        for one in section.comparisons:
            name, condition, probe = one.key
            for suffix, value in (("_excess", one.mean), ("_excess_p_holm", one.p_holm)):
                if value is not None:
                    numbers.setdefault(f"{name}{suffix}/{_arm(one.arm, one.variant)}/{condition}/{probe}", value)
    return numbers


def _arm(arm: str, variant: str) -> str:
    return f"{arm}[{variant}]" if variant else arm


def pictured_variant(spec: ReportSpec, scored: Sequence[Scored]) -> str:
    """The variant that the figures of one experiment are of: the main one, else the first line's."""
    held = variants_of(scored)
    lines = [row.variant for table in spec.tables for row in table.rows]
    return next((variant for variant in ("", *lines) if variant in held), "")


def stealth_lines(stealth: Mapping[str, "Stealth"]) -> tuple[tuple[str, ...], ...]:
    """Attack, then ``STEALTH``; identical images have no finite PSNR."""
    return tuple(
        (
            attack.replace("_", " "),
            f"{one.n:,}",
            _plain(one.ssim, 3),
            _plain(one.psnr_db, 1),
            f"{one.num_unchanged:,}",
            f"{100 * one.area_frac:.1f} %",
        )
        for attack, one in stealth.items()
    )


def _plain(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
