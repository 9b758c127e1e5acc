"""A row for published tables: accuracy before and after, success by both conventions, visibility, seeds, interval.

Success over the test images that are not of the target class is the convention of Saha et al. 2022, over all of them
that of CTRL, BadEncoder and CleanCLIP: both are given, and the count of false positives.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ssl_backdoor.report.cells import MISSING, Table, csv_text, dense_table, interval_of, number, plural
from ssl_backdoor.report.estimates import Estimate, Results
from ssl_backdoor.report.frame import Measure, headline_probes, probe_label
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.stealth import Stealth
from ssl_backdoor.report.verdicts import Encoder
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.words import listing, method_label

_RATE, _RATE_ALL, _COUNT = "attack_success_rate", "attack_success_rate_all", "target_false_positives"
_HEADS = (
    "encoder", "data", "method", "attack", "poisons", "probe", "clean accuracy before", "after", "ASR (non-target)",
    "95 % interval", "ASR (all)", "FP", "ASR of the control", "PSNR (dB)", "SSIM", "over",
)  # fmt: skip
_FIELDS = (
    "encoder", "variant", "data", "method", "attack", "num_poisons", "probe", "clean_accuracy_before",
    "clean_accuracy_after", "asr_non_target", "asr_low", "asr_high", "asr_all", "target_false_positives",
    "num_non_target_images", "asr_of_control", "psnr_db", "ssim", "num_units", "unit",
)  # fmt: skip


class Row(NamedTuple):
    """One kind of encoder. What was not measured is None."""

    label: str
    variant: str
    data: str
    method: str
    attack: str
    num_poisons: float | None
    probe: str
    before: Estimate | None
    """Clean accuracy of the control."""
    after: Estimate | None
    rate: Estimate
    rate_all: Estimate | None
    hits: Estimate | None
    """Target false positives."""
    control_rate: Estimate | None
    stealth: Stealth | None


def rows_of(every: Sequence[Results], data: Mapping[DatasetSpec, str], stealth: Mapping[str, Stealth]) -> list[Row]:
    """Every poisoned encoder, defended or not, whose success was measured; ``data``: what each dataset is called."""
    return [
        row
        for results in every
        for axis, point in dict.fromkeys((row.axis, row.point) for row in results.rows)
        if not point.arm.is_clean
        for row in _rows(results, axis, point, data, stealth)
    ]


def _rows(
    results: Results, axis: str, point: Point, data: Mapping[DatasetSpec, str], stealth: Mapping[str, Stealth]
) -> Iterator[Row]:
    probes = [
        row.measure.probe
        for row in results.rows
        if (row.axis, row.point, row.measure.metric, row.measure.condition) == (axis, point, _RATE, "triggered")
    ]
    models = [
        model
        for model in results.models
        if (model.run.variant, model.made) == (point.variant, point.arm)
        and (not axis or model.facts.get(axis) == point.x)
    ]
    for probe in [*headline_probes(probes)[-1:], *probes][:1] if models else ():
        here = Encoder(results, Measure(_RATE, "triggered", probe), point, axis)
        rate, control = here.get(), here.control
        counts = here.measure._replace(metric=_COUNT)
        clean = Measure("accuracy", "clean", probe)
        if rate is None or rate.value is None:
            continue
        run = models[0].run
        num_poisons = {model.facts["num_poisons"] for model in models if "num_poisons" in model.facts}
        yield Row(
            label=point.arm.label,
            variant=point.variant,
            data="; ".join(dict.fromkeys(data.get(model.run.dataset, MISSING) for model in models)),
            method=listing(list(dict.fromkeys(method_label(model.run.train.method.kind) for model in models))),
            attack=run.attack.kind,
            num_poisons=num_poisons.pop() if len(num_poisons) == 1 else None,
            probe=probe,
            before=here.get(measure=clean, point=control) if control else None,
            after=here.get(measure=clean),
            rate=rate,
            rate_all=here.get(measure=here.measure._replace(metric=_RATE_ALL)),
            hits=here.get(measure=counts),
            control_rate=here.get(point=control) if control else None,
            stealth=stealth.get(run.attack.kind),
        )


def table_of(rows: Sequence[Row]) -> Table:
    """For people: a column an encoder, which fits a page."""
    lines = [
        (
            f"{row.label} [{row.variant}]" if row.variant else row.label,
            row.data, row.method, row.attack.replace("_", " "),
            MISSING if row.num_poisons is None else f"{row.num_poisons:,.0f}",
            probe_label(row.probe),
            *(_shown(one) for one in (row.before, row.after, row.rate)),
            interval_of(row.rate, "percent") or "none",
            _shown(row.rate_all),
            f"{number(row.hits.value, 'count')} of {row.hits.num_images:,}" if row.hits else MISSING,
            _shown(row.control_rate),
            MISSING if not row.stealth or row.stealth.psnr_db is None else f"{row.stealth.psnr_db:.1f}",
            MISSING if not row.stealth or row.stealth.ssim is None else f"{row.stealth.ssim:.3f}",
            plural(row.rate.num_units, row.rate.unit),
        )
        for row in rows
    ]  # fmt: skip
    heads, *fields = zip(_HEADS, *lines, strict=True) if lines else [(_HEADS[0],)]
    return dense_table(heads, fields if lines else ())


def _shown(row: Estimate | None) -> str:
    return number(row.value if row else None, "percent")


def csv_of(rows: Sequence[Row]) -> str:
    """As numbers: fractions in [0, 1], counts as they are."""

    def value(row: Estimate | None) -> float | None:
        return row.value if row else None

    return csv_text(
        _FIELDS,
        [
            (
                row.label, row.variant, row.data, row.method, row.attack, row.num_poisons, row.probe,
                value(row.before), value(row.after), value(row.rate), row.rate.low, row.rate.high,
                value(row.rate_all), value(row.hits), row.hits.num_images if row.hits else None,
                value(row.control_rate), row.stealth.psnr_db if row.stealth else None,
                row.stealth.ssim if row.stealth else None, row.rate.num_units, row.rate.unit,
            )
            for row in rows
        ],
    )  # fmt: skip
