"""What an analyst sees first in MLflow: each encoder's headline figures, in a view of a report's runs made ahead.

The view is a *shared view* of MLflow's own page (3.17): an experiment tag ``mlflow.sharedViewState.KEY`` holds what the
page keeps of columns, groups and charts, and ``?viewStateShareKey=KEY`` opens it. A view that is saved by hand has the
same form. Nothing here imports MLflow.
"""

import io
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_backdoor.errors import to_printable_line
from ssl_backdoor.evaluate.metrics import UNSEEN
from ssl_backdoor.report.frame import headline_probes

TAGS = ("arm", "method", "attack", "defence", "pair", "seed")
"""Columns of the view that say what a run is."""
HEADLINE = ("clean_accuracy", "attack_success_rate", "specific_excess", "target_false_positives", "z_score")
"""Columns of the view that say what came out; the first two are its charts, the second first."""
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""With it MLflow opens an experiment as the training of models, not as traces of a chat."""
VIEW_TAG = "mlflow.sharedViewState."
_SIDE_PX = 96  # of an example image; more where the image has more


def probe_shown(measured: Iterable[str]) -> str | None:
    """The probe of an encoder's headline: zero-shot, else the linear one with the most labels, else kNN, else any."""
    probes = {name.removeprefix("accuracy/clean/") for name in measured if name.startswith("accuracy/clean/")}
    order = ("zero_shot", *reversed(headline_probes(probes)), *sorted(probes))
    return next((probe for probe in order if probe in probes), None)


def headline(measured: Mapping[str, float | None], control: Mapping[str, float | None]) -> dict[str, float]:
    """The figures of ``HEADLINE`` that were measured on an encoder.

    Args:
        measured: by ``name/condition/probe``; shares in [0, 1], false positives as counts.
        control: the same of the clean-trained encoder without a defence; its own specific excess is 0.
    """
    probe = probe_shown(measured)

    def excess(of: Mapping[str, float | None]) -> float | None:
        own, unseen = (of.get(f"attack_success_rate/{where}/{probe}") for where in ("triggered", UNSEEN))
        return None if own is None or unseen is None else own - unseen

    mine, theirs = excess(measured), excess(control)
    success = measured.get(f"attack_success_rate/triggered/{probe}")
    found = {
        "clean_accuracy": measured.get(f"accuracy/clean/{probe}"),
        "attack_success_rate": measured.get(f"targeted_success/target/{probe}") if success is None else success,
        "specific_excess": None if mine is None or theirs is None else mine - theirs,
        "target_false_positives": measured.get(f"target_false_positives/triggered/{probe}"),
        "z_score": measured.get("z_score_variance/triggered/features"),
    }
    return {name: round(value, 6) for name, value in found.items() if value is not None}


def name_groups(runs: Sequence[dict[str, str]]) -> None:
    """Give each run's tags a ``group``, whose runs differ in pair and seed alone: the arm, and after it what tells."""
    telling: list[str] = []
    for name in ("variant", "method", "attack"):
        if _num_kinds(runs, [*telling, name]) > max(1, _num_kinds(runs, telling)):
            telling.append(name)
    for run in runs:
        run["group"] = ", ".join([run["arm"], *(run[name] for name in telling if run[name] != "main")])


def _num_kinds(runs: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    return len({tuple(run[name] for name in names) for run in runs})


def means(rows: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> dict[str, float]:
    """Clean accuracy, attack success and specific excess of each group of runs, as ``figure/group``.

    Args:
        rows: tags and headline of each run.
    """
    found: dict[str, list[float]] = {}
    for figure in HEADLINE[:3]:
        for tags, figures in rows:
            if figure in figures and (figure != "specific_excess" or not tags["arm"].startswith("clean")):
                found.setdefault(f"{figure}/{_spelled(tags['group'])}", []).append(figures[figure])
    return {name: sum(values) / len(values) for name, values in found.items()}


def _spelled(group: str) -> str:
    """As a metric's name takes it: without a plus, a comma or a slash, which would begin a section."""
    return group.replace(" + ", " with ").replace(", ", ": ").replace("/", "-")


def comparison(rows: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> dict[str, Any]:
    """Tags and headline of each run as MLflow shows a table: ``columns`` and the lines of ``data``."""
    columns = ["variant", *TAGS, "model_key", *HEADLINE]
    return {"columns": columns, "data": [[{**tags, **figures}.get(name) for name in columns] for tags, figures in rows]}


def literal(text: str) -> str:
    """One line of Markdown that shows ``text`` as it is."""
    plain = to_printable_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", plain)


def view(report: str, metrics: Collection[str]) -> str:
    """The shared view of the runs that have the tag ``report``, as the value of its experiment tag.

    Args:
        report: value of the tag, without quotes.
        metrics: all metrics of the runs; MLflow draws each, those that are not of the answer below, folded.
    """
    shown = [name for name in (HEADLINE[1], HEADLINE[0]) if name in metrics]
    answer = {"uuid": "answer", "name": "Which defence wins", "display": True, "columns": 2, "cardHeight": 420}
    more = sorted({name.rpartition("/")[0] or "Model metrics" for name in metrics})  # as MLflow names its sections
    sections = [answer, *({"uuid": f"more-{name}", "name": name, "display": False} for name in more)]
    charts = [
        {"type": "BAR", "uuid": f"bar-{name}", "metricSectionId": "answer", "metricKey": name, "runsCountToCompare": 10}
        for name in shown
    ]
    columns = [*(f"metrics.`{name}`" for name in HEADLINE), *(f"tags.`{name}`" for name in TAGS)]
    state: dict[str, Any] = {
        "searchFilter": f"tags.report = '{report}'",
        "orderByKey": "tags.`arm`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "group"}]},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # else the sections are sorted by name
        "compareRunCharts": [{"deleted": False, "isGenerated": False, **one} for one in charts],
        "compareRunSections": [
            {"isReordered": False, "deleted": False, "isGenerated": False, **one} for one in sections
        ],
    }
    widths = {"attributes.`Run Name`": 340, **dict.fromkeys(columns, 150), "runDateAndNestInfo": 130, "duration": 90}
    state |= {"columnOrder": list(widths), "columnWidths": widths}
    created = round(1000 * time.time())
    envelope = {"name": f"report {report}", "createdAt": created, "updatedAt": created, "state": json.dumps(state)}
    return json.dumps(envelope)


def example_sheet(neighbours: Path) -> bytes:
    """PNG of triggered test images, one a line, each followed by the clean images that the encoder finds nearest.

    Args:
        neighbours: npz as evaluation writes it: query uint8 (L, H, W, 3), neighbours uint8 (L, K, H, W, 3).
    """
    with np.load(neighbours, allow_pickle=False) as file:
        cells = np.concatenate([file["query"][:, None], file["neighbours"]], axis=1)
    lines, columns, height, width, _ = cells.shape
    factor = max(1, _SIDE_PX // height)
    cells = cells.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = np.full((lines, columns, factor * height, 4, 3), 255, np.uint8)
    gap[:, 0, :, :, :] = 0  # a black bar between the triggered image and its neighbours
    sheet = np.concatenate([cells, gap], axis=3).transpose(0, 2, 1, 3, 4)
    out = io.BytesIO()
    Image.fromarray(sheet.reshape(lines * factor * height, columns * (factor * width + 4), 3)).save(out, "PNG")
    return out.getvalue()
