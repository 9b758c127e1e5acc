"""Writes the report: one self-contained HTML page, its Markdown twin, the figures and the numbers.

Everything that comes from data, specs or file names is escaped: by Jinja2 in HTML, by ``markdown`` in Markdown.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.errors import replace_control_chars
from ssl_backdoor.identity import canonical
from ssl_backdoor.report import leaderboard, verdicts
from ssl_backdoor.report.cells import (
    MISSING,
    OF_THE_PAPER,
    Example,
    Picture,
    Table,
    arm_label,
    dense_table,
    latex,
    plain_number,
)
from ssl_backdoor.report.comparisons import Comparison, compare
from ssl_backdoor.report.estimates import Estimate, Results, paired, swept
from ssl_backdoor.report.figures.bars import false_positives, same_label_shares, similarity_histograms
from ssl_backdoor.report.figures.curves import axis_curves, loss_curves
from ssl_backdoor.report.figures.feature_map import embedding
from ssl_backdoor.report.figures.heatmaps import confusion, delta_heatmap, prediction_heatmap
from ssl_backdoor.report.figures.images import neighbours, poisons, trigger_sheet
from ssl_backdoor.report.figures.paired_dots import before_after, paired_dotplot
from ssl_backdoor.report.frame import FRAME, EvaluatedModel, tidy
from ssl_backdoor.report.sections import pairs, sweep, table
from ssl_backdoor.report.sentences import pairs_clauses, punctuated, sweep_clauses, table_clauses
from ssl_backdoor.report.stealth import Stealth
from ssl_backdoor.specs import DatasetSpec, ReportSpec, TableSpec

_POISONS = ("num_poisons", "poison_fraction_of_target", "poison_fraction_of_dataset", "num_recoded")
_JUDGED = ("detection_", "filter_")
_LEADERBOARD = (
    "To copy into published tables. ASR (non-target): over the test images that are not of the target class, as Saha "
    "et al. count; ASR (all): over all of them, as CTRL, BadEncoder and CleanCLIP do. Before and after: clean accuracy "
    "of the clean-trained and of this encoder. PSNR and SSIM (windows of 7 px) of poisoned training images in "
    "the stored frame. Not measured: –."
)
_STEALTH = ("poisons read", "SSIM", "PSNR (dB)", "unchanged", "area of the trigger")


class Section(NamedTuple):
    """A part of the page, in the order of its fields."""

    title: str = ""
    id: str = ""
    level: int = 2
    nav: str = ""
    """Its name among the contents; empty: not listed."""
    fold: str = ""
    """What the line to unfold it says; empty: not folded."""
    text: str = ""
    caption: str = ""
    csv: str = ""
    """Name of the file with these numbers."""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    has_titles: bool = True
    """Whether its pictures' titles stand below them."""
    words: Mapping[str, str] | None = None
    numbered: Sequence[str] = ()
    lines: Sequence[str] = ()
    code: str = ""
    parts: Sequence["Section"] = ()

    @property
    def pruned(self) -> "Section":
        """Without parts that show nothing."""
        tables = tuple(table for table in self.tables if table.lines)
        parts = [one for one in (part.pruned for part in self.parts) if one.is_filled]
        return self._replace(tables=tables, parts=parts)

    @property
    def is_filled(self) -> bool:
        """Whether it shows anything but words about what it would show."""
        shown = (self.tables, self.pictures, self.words, self.numbered, self.lines, self.code, self.parts)
        return any(shown)


class Setup(NamedTuple):
    """What was run."""

    words: Mapping[str, str]
    """Part by part (``setting.describe_setting``)."""
    data: Mapping[DatasetSpec, str] = MappingProxyType({})
    """What a row of a table calls each dataset."""
    triggers: Mapping[str, Path] = MappingProxyType({})
    """The picture of each trigger, by a name for people."""
    title: str = ""
    """Of the page; empty: the recipe's name."""


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
    models: Sequence[EvaluatedModel],
    examples: Sequence[Example],
    poison_summaries: Mapping[str, Mapping[str, Any]],
    out: Path,
    seconds: Mapping[str, float] | None = None,
    *,
    stealth: Mapping[str, Stealth] | None = None,
    setup: Setup | None = None,
) -> dict[str, Any]:
    """Writes report.html, report.md, measurements.parquet, measurements.json and figures/ into ``out``.

    Runs under an attack that ``spec.figures`` names are laid out along the figures' axes (PNG, and the data behind it
    as CSV); all others are paired with their controls, and laid out in the tables that ``spec.tables`` names.
    measurements.parquet is the tidy frame (``frame.FRAME``), measurements.json what the page shows.

    Args:
        spec: the question and the runs.
        models: every encoder of the runs, measured; the order is that of the page.
        examples: training images before and after poisoning.
        poison_summaries: summary of each poison stage by a name for people.
        out: an existing folder.
        seconds: wall-clock by stage, shown as the cost.
        stealth: how visible the poisons of each kind of attack are.
        setup: what was run.

    Returns:
        ``question``, ``answer`` (a line a verdict), ``details``, ``setting``, ``headline`` (the key numbers by
        ``name/arm/condition/probe``) and
        ``texts`` (tables for a terminal); where there are tables, ``tables``: the comparisons of each as JSON data.

    Raises:
        SpecError: two results for one arm, variant, pair and seed, or points that mix settings (see ``swept``).
    """
    report = _Report.of(spec, models)
    setup, lines, details = setup or Setup({}), _answer(report), punctuated(_details(report))
    rows = leaderboard.rows_of((report.paired, report.along), setup.data, stealth or {})
    sections = [
        Section("Details", "details", nav="Details", lines=details),
        _setup(report, setup),
        Section(
            "Leaderboard row", "leaderboard", nav="Leaderboard row", caption=_LEADERBOARD, csv="leaderboard",
            tables=(leaderboard.table_of(rows),),
        ),
        *_sections(report, examples, _stage_tables(poison_summaries, stealth or {}), seconds or {}),
    ]  # fmt: skip
    sections = [one for one in (section.pruned for section in sections) if one.is_filled]
    title = setup.title or spec.recipe
    _write_pages({"spec": spec, "title": title, "answer": lines, "sections": sections}, out)
    _write_figures(report, [picture for one in _every(sections) for picture in one.pictures], out / "figures")
    tex = [
        latex(table, section.title or table.caption)
        for section in _every(sections)
        for table in section.tables
        if not table.is_long and not section.fold
    ]
    (out / "table.tex").write_text("\n".join(tex), encoding="utf-8")
    (out / "figures" / "leaderboard.csv").write_text(leaderboard.csv_of(rows), encoding="utf-8")
    _write_numbers(report, out)
    told = {"answer": "\n".join(lines), "details": details, "setting": dict(setup.words)}
    return {"question": spec.question} | told | _summary(report)


def _answer(report: "_Report") -> list[str]:
    tables = [(one.spec, one.comparisons) for one in report.tables]
    first = verdicts.of_tables(tables, report.paired) if tables else verdicts.of_pairs(report.paired)
    along = verdicts.of_figures(report.spec.figures, report.along)
    lines = verdicts.verdict_lines(verdicts.Findings(*(a + b for a, b in zip(first, along, strict=True))))
    if num_missing := len(report.spec.missing):
        lines.append("1 run failed and is not in it." if num_missing == 1 else f"{num_missing} runs failed, not in it.")
    return lines


def _details(report: "_Report") -> Iterator[str]:
    tables = [(one.spec, one.comparisons) for one in report.tables]
    yield from table_clauses(tables) if tables else pairs_clauses(report.paired)
    yield from sweep_clauses(report.spec.figures, report.along)


class _TableFound(NamedTuple):
    spec: TableSpec
    cells: table.PaperTable
    comparisons: tuple[Comparison, ...]


class _Report(NamedTuple):
    """The encoders that are paired with a control, and those along an axis, each with its estimates."""

    spec: ReportSpec
    paired: Results
    along: Results
    tables: tuple[_TableFound, ...]

    @classmethod
    def of(cls, spec: ReportSpec, models: Sequence[EvaluatedModel]) -> "_Report":
        spec = spec if spec.show_recalled else _without_recalled(spec)
        attacks = {figure.attack for figure in spec.figures}
        along = swept(spec.figures, [model for model in models if model.run.attack.kind in attacks])
        found = paired([model for model in models if model.run.attack.kind not in attacks], spec.unit)
        compared = zip(spec.tables, compare(spec.tables, found), strict=True)
        tables = (_TableFound(one, table.PaperTable(one, found), lines) for one, lines in compared)
        return cls(spec, found, along, tuple(tables))

    @property
    def rows(self) -> list[Estimate]:
        return [*self.paired.rows, *self.along.rows]

    @property
    def pictured_variant(self) -> str:
        """The variant that the figures of one experiment are of: the main one, else the first line's."""
        lines = [row.variant for one in self.spec.tables for row in one.rows]
        return next((variant for variant in ("", *lines) if variant in self.paired.variants), "")


def _without_recalled(spec: ReportSpec) -> ReportSpec:
    """``spec`` without the papers' values that nobody read in them."""
    changes = {
        name: tuple(
            one.model_copy(update={"paper": tuple(value for value in one.paper if value.is_verified)}) for one in shown
        )
        for name, shown in (("figures", spec.figures), ("tables", spec.tables))
    }
    return spec.model_copy(update=changes)


def _summary(report: _Report) -> dict[str, Any]:
    """The key numbers, tables for a terminal and, where there are tables, their comparisons."""
    spec, found = report.spec, report.paired
    numbers = pairs.headline_numbers(found) | sweep.headline_numbers(spec.figures, report.along)
    of_tables: dict[str, float] = {}
    for one in report.tables:
        for name, value in table.headline_numbers(one.spec, found, one.comparisons).items():
            of_tables.setdefault(name, value)  # of tables that share a number, the first
    texts = [one.cells.text(one.comparisons) for one in report.tables]
    if any(not row.point.variant for row in found.rows):
        texts.append(pairs.headline_text(found))
    texts += [sweep.figure_text(figure, report.along) for figure in spec.figures]
    summary: dict[str, Any] = {"headline": numbers | of_tables, "texts": texts}
    if report.tables:
        summary["tables"] = [
            {
                "name": one.spec.name,
                "title": table.title_of(one.spec),
                "comparisons": table.comparisons_json(one.comparisons),
            }
            for one in report.tables
        ]
    return summary


# -------------------------------------------------------------------------------------------------- sections


def _sections(
    report: _Report, examples: Sequence[Example], stage_tables: Sequence[Section], seconds: Mapping[str, float]
) -> list[Section]:
    """The page from top to bottom."""
    has_pairs = bool(report.paired.models) or not report.spec.figures
    sweeps = _sweeps(report)
    sections = [section for one in report.tables for section in _table(one)]
    if report.tables and (sheet := neighbours([row for one in report.tables for row in one.spec.rows], report.paired)):
        sections.append(Section("Nearest neighbours", "neighbours", nav="Neighbours", pictures=(sheet,)))
    sections += [*_levels(report)] if has_pairs else sweeps
    sections += _judged(report)
    pictures = _pictures(report, examples)
    if pictures:
        of = f" of {report.pictured_variant}" if report.pictured_variant else ""
        sections.append(Section(f"Figures{of}", "figures", nav="Figures", pictures=pictures))
    if has_pairs:
        sections += [*sweeps, _every_pair(report)]
    return [*sections, *stage_tables, *_numbers(report), _cost(report, seconds)]


def _table(one: _TableFound) -> list[Section]:
    shown, lines, name = one.cells.shown(), one.comparisons, one.spec.name
    note = table.unit_note(lines)
    caption = f"Mean, 95 % interval, n, range over pairs. {note}"
    if any(line.tone == "paper" for line in shown.lines):
        caption += OF_THE_PAPER
    title = table.title_of(one.spec)
    parts = []
    if lines:
        how = (
            f"Differences are paired. {note} Significant: p after Holm's correction over the lines of all tables "
            'is under 0.05; "no significant difference" is no proof of equality.'
        )
        compared = table.comparison_table(lines)
        parts.append(
            Section(table.comparison_title(lines), level=3, caption=how, csv=f"{name}_comparisons", tables=(compared,))
        )
    drawn = (paired_dotplot(one.spec, lines, one.cells.results), delta_heatmap(one.spec, lines))
    parts.append(Section(pictures=tuple(picture for picture in drawn if picture)))
    return [Section(title, f"table-{name}", nav=title, caption=caption, csv=name, tables=(shown,), parts=parts)]


def _sweeps(report: _Report) -> list[Section]:
    parts = []
    for number, figure in enumerate(report.spec.figures, 1):
        if figure.axis == "similarity":
            drawn = similarity_histograms(figure, report.along.models)
        elif figure.axis == "same_label":
            drawn = same_label_shares(figure, report.along.models)
        else:
            drawn = axis_curves(figure, report.along)
        shown = sweep.figure_table(figure, report.along)
        below = [Section(tables=(shown,))]
        pictures = (drawn,) if drawn else ()
        parts.append(Section(figure.title, f"sweep-{number}", 3, pictures=pictures, has_titles=False, parts=below))
    text = "Each point is several models, trained alike under different seeds. The control is the clean-trained model."
    return [Section("Along an axis", "sweeps", nav="Along an axis", text=text, parts=parts)] if parts else []


def _levels(report: _Report) -> list[Section]:
    found, has_tables = report.paired, bool(report.tables)
    word = "variant" if has_tables else "side variant"
    shown = [(variant, one) for variant in found.variants if (one := pairs.excess_table(found, variant)).lines]
    parts = [
        Section(
            (f"{word.capitalize()}: {variant}" if variant else "Main variant") * (len(shown) > 1),
            level=3,
            tables=(one,),
        )
        for variant, one in shown
    ]
    for variant in filter(None, found.variants):
        levels = pairs.headline_table(found, variant)
        parts.append(Section(f"Levels under the {word} {variant}", level=3, tables=(levels,)))
    excess = Section(
        "Excess over the control, and what the defence removes", "excess", 3 if has_tables else 2,
        nav="Excess and defence",
        text="Differences are paired: same dataset, trigger, target and seed. Accuracies and shares differ in "
        "percentage points (pt).",
        parts=parts,
    )  # fmt: skip
    levels = pairs.headline_table(found)
    if not has_tables:
        return [Section("Table", "table", nav="Table", tables=(levels,)), excess]
    fold = "All arms of every variant, by every shown probe"
    tables = (levels,) if levels.lines else ()
    return [Section("Every variant", "table", nav="Every variant", fold=fold, tables=tables, parts=[excess])]


def _judged(report: _Report) -> list[Section]:
    """What filters leave out and detectors find, compared with what is true."""
    rows = [row for row in report.rows if row.measure.metric.startswith(_JUDGED) and row.statistic == "value"]
    if not rows:
        return []
    lines = [
        (arm_label(row.point.arm, row.point.variant), row.measure.probe, row.measure.condition, row.name,
         *map(plain_number, (row.value, *row.told_interval[:2])), f"{row.n:,}", row.told_interval[2])
        for row in rows
    ]  # fmt: skip
    heads = ("encoder", "filter or detector", "what is judged", "measure", "value", "low", "high", "n", "interval")
    text = (
        "Neither sees which samples are poisoned or which inputs bear the trigger. Of the clean-trained encoder there "
        "are false alarms alone. The exact definitions are those of all numbers, below."
    )
    shown = dense_table(heads, lines, text=(1, 2, 3, 8))
    return [Section("Filters and detectors", "judged", nav="Filters and detectors", text=text, tables=(shown,))]


def _pictures(report: _Report, examples: Sequence[Example]) -> tuple[Picture, ...]:
    """Every figure of one variant for which there are data; poisons come first."""
    attacks = dict.fromkeys(example.attack for example in examples)
    drawn = [poisons([example for example in examples if example.attack == attack]) for attack in attacks]
    for draw in (before_after, false_positives, prediction_heatmap, embedding, confusion, loss_curves):
        drawn.append(draw(report.paired, report.pictured_variant))
    return tuple(picture for picture in drawn if picture)


def _every_pair(report: _Report) -> Section:
    text = (
        "Triggered test images; c, p and d are the clean-trained (control), the poisoned and the defended encoder. The "
        "top class is the one that most triggered images are given by the poisoned encoder. One pair "
        "illustrates; what a defence removes is told over all pairs."
    )
    shown = pairs.pair_table(report.paired, "variant" if report.tables else "side variant")
    return Section("Every pair", "pairs", nav="Every pair", text=text, tables=(shown,))


def _stage_tables(summaries: Mapping[str, Mapping[str, Any]], stealth: Mapping[str, Stealth]) -> list[Section]:
    """What was poisoned, and how visible the trigger is; identical images have no finite PSNR."""
    poisoned = [
        (name, str(summary.get("target_class") or MISSING), *(_counted(summary.get(column)) for column in _POISONS))
        for name, summary in summaries.items()
    ]
    visible_poisons = [
        (attack.replace("_", " "), f"{one.n:,}", _rounded(one.ssim, 3), _rounded(one.psnr_db, 1),
         f"{one.num_unchanged:,}", f"{100 * one.area_frac:.1f} %")
        for attack, one in stealth.items()
    ]  # fmt: skip
    sections = []
    if poisoned:
        shown = dense_table(("poisoning", "target class", *_POISONS), poisoned, text=(1,))
        sections.append(Section("What was poisoned", level=3, tables=(shown,)))
    if visible_poisons:
        caption = (
            "Poisoned images against their originals, means, in the stored frame. PSNR is over the images that "
            "changed; the area is that of the trigger's box over the image's."
        )
        shown = dense_table(("attack", *_STEALTH), visible_poisons)
        sections.append(Section("How visible the trigger is", level=3, caption=caption, tables=(shown,)))
    return sections


def _counted(value: Any) -> str:
    return MISSING if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _rounded(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _numbers(report: _Report) -> list[Section]:
    """Every row with the number of its definition, and the definitions."""
    rows = [row for row in report.rows if not (report.tables and row.measure.class_name)]
    number = {text: position for position, text in enumerate(dict.fromkeys(row.definition for row in rows), 1)}
    heads = ("arm", "name", "condition", "probe", "value", "low", "high", "n", "interval", "def.")
    lines = [
        (arm_label(row.point.arm, row.point.variant), row.name, row.record()["condition"], row.measure.probe,
         *map(plain_number, (row.value, *row.told_interval[:2])), f"{row.n:,}", row.told_interval[2],
         f"{number[row.definition]}")
        for row in rows
    ]  # fmt: skip
    also = ", and the false positives of every class," if report.tables else ""
    text = (
        f"The same rows{also} are in measurements.json, every encoder's in measurements.parquet. The last column "
        "numbers the exact definitions below."
    )
    shown = dense_table(heads, lines, text=(1, 2, 3, 8))._replace(is_long=True)
    words = vars(_environment(markup=True).get_template("glossary.j2").module)
    spec = report.spec
    lists = {"pairs": True, "sweeps": spec.figures, "tables": spec.tables, "over_seeds": spec.unit == "seed"}
    told = dict(pair for name, is_told in lists.items() if is_told for pair in words[name])
    if not any(figure.paper for figure in spec.figures) and not any(one.paper for one in spec.tables):
        told = {word: meaning for word, meaning in told.items() if not word.startswith("paper")}
    exact = Section(fold=f"Exact definition of every row ({len(number)})", numbered=tuple(number))
    return [
        Section("All numbers", "all", nav="All numbers", fold=f"{len(rows)} rows", text=text, tables=(shown,)),
        Section(
            "Definitions", "definitions", nav="Definitions", words=told,
            parts=[exact],
        ),
    ]  # fmt: skip


def _setup(report: _Report, setup: Setup) -> Section:
    """What was run: in words, the triggers, the whole spec, the papers."""
    lines = json.dumps(canonical(report.spec), indent=1, sort_keys=True, ensure_ascii=False).split("\n")
    text = "\n".join(map(replace_control_chars, lines))
    parts = [Section(fold="The whole spec as canonical JSON (fields equal to their default are left out)", code=text)]
    if papers := "\n\n".join(_papers(report.spec)):
        parts.append(Section(fold="BibTeX of the papers", code=papers))
    picture = trigger_sheet(setup.triggers)
    shown = (picture,) if picture else ()
    return Section("Setup", "setup", nav="Setup", words=setup.words, pictures=shown, has_titles=False, parts=parts)


def _papers(spec: ReportSpec) -> Iterator[str]:
    """The entries of papers.bib whose name is that of an attack, method or defence, or its beginning."""
    kinds = {kind for run in spec.runs for kind in
             (run.attack.kind, run.train.method.kind, *(one.kind for one in run.defences))}  # fmt: skip
    for entry in (Path(__file__).parent / "papers.bib").read_text(encoding="utf-8").strip().split("\n\n"):
        name = entry.partition("{")[2].partition(",")[0]
        if any(kind == name or kind.startswith(f"{name}_") for kind in kinds):
            yield entry


def _cost(report: _Report, seconds: Mapping[str, float]) -> Section:
    """What took how long: stages as given, then the mean encoder of each arm."""
    found = report.paired
    lines = [(f"stage {stage}", f"{value:,.1f}", "") for stage, value in seconds.items()]
    for arm in found.arms:
        each = [model.seconds for model in found.models if model.made == arm]
        lines.append((f"one {arm.label}, mean", f"{sum(each) / len(each):,.1f}", f"{len(each)}"))
    shown = dense_table(("what", "seconds", "of"), lines)
    if not report.tables:
        return Section("Cost", "cost", nav="Cost", tables=(shown,))
    caption = (
        "By cell, seconds on average. Device-hours: of all trainings, times the devices that each ran on, and of all "
        "evaluations; a clean-trained encoder that the pairs of a seed share is counted once, one that several "
        "variants share in each."
    )
    return Section("Cost", "cost", nav="Cost", caption=caption, tables=(table.cost_table(found), shown))


# --------------------------------------------------------------------------------------------------- writing


def _environment(markup: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=markup,  # noqa: S701  Markdown is escaped by finalize
        finalize=None if markup else markdown,
    )


def _write_pages(context: Mapping[str, Any], out: Path) -> None:
    for name in ("report.html", "report.md"):
        (out / name).write_text(render_page(name, context), encoding="utf-8")


def render_page(name: str, context: Mapping[str, Any]) -> str:
    """The template of the page ``name`` with all of ``context`` escaped, as HTML or by ``markdown``."""
    environment = _environment(markup=name.endswith(".html"))
    return environment.get_template(f"{name}.j2").render(context, verbatim=Verbatim) + "\n"


def _every(sections: Iterable[Section]) -> Iterator[Section]:
    for one in sections:
        yield one
        yield from _every(one.parts)


def _write_figures(report: _Report, pictures: Sequence[Picture], folder: Path) -> None:
    """Every picture, and the numbers behind it and behind every table."""
    folder.mkdir(exist_ok=True)
    texts = {picture.name: picture.data for picture in pictures if picture.data}
    for one in report.tables:
        comparisons = table.comparison_csv(one.comparisons)
        texts |= {one.spec.name: one.cells.csv(), f"{one.spec.name}_comparisons": comparisons}
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
        (folder / f"{picture.name}.svg").write_bytes(picture.svg)
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")


def _write_numbers(report: _Report, out: Path) -> None:
    frames = [tidy(report.spec.recipe, found.models, found.frame) for found in (report.paired, report.along)]
    frame = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), FRAME, preserve_index=False)
    pq.write_table(frame, out / "measurements.parquet")
    records = [row.record() for row in report.rows]
    text = json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "measurements.json").write_text(text + "\n", encoding="utf-8")
