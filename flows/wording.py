"""What a report says of itself follows from its runs as they are: settings change them after the recipe was written."""

from collections.abc import Callable, Sequence

from ssl_backdoor.specs import ReportSpec, RunSpec, TableRow
from ssl_backdoor.words import listing, method_label, plural

NameVariant = Callable[[RunSpec], str]
Ask = Callable[[Sequence[RunSpec]], str]
_SMALL_PX = 64
_SHOWN_CHARS = 60


def methods_of(runs: Sequence[RunSpec]) -> str:
    """Those that are trained: "BYOL and MoCo v2"."""
    return listing(list(dict.fromkeys(method_label(run.train.method.kind) for run in runs)))


def defences_of(runs: Sequence[RunSpec]) -> str:
    """Those that are tried, each with its trusted share of the data; empty where there are none."""
    found: dict[str, list[float]] = {}
    for one in (one for run in runs for one in run.defences):
        shares = found.setdefault(one.label, [])
        if (share := one.trusted_fraction) and share not in shares:
            shares.append(share)
    return listing(
        [
            f"{label} on trusted {listing([f'{100 * share:g}' for share in shares])} % of the data" if shares else label
            for label, shares in found.items()
        ]
    )


def pairs_of(runs: Sequence[RunSpec]) -> str:
    """How many: "10 trigger/target pairs"."""
    return plural(len({(run.attack.trigger, run.attack.target_class) for run in runs}), "trigger/target pair")


def ask(runs: Sequence[RunSpec]) -> str:
    """What any ``runs`` answer."""
    defences = defences_of(runs)
    undone = f", and how much of that does {defences} undo" if defences else ""
    methods = methods_of(runs)
    learned = f"{methods} learn{'' if ' and ' in methods else 's'}"
    return f"Over {pairs_of(runs)}, do the poisons bend what {learned} from these images{undone}?"


def reword(
    report: ReportSpec, changed: Sequence[str], name_variant: NameVariant | None = None, ask: Ask | None = None
) -> ReportSpec:
    """``report`` with equal variants merged, the others named after what they hold, and a question and note that hold.

    Args:
        report: with the runs that are to be made.
        changed: what was asked to be other than in the recipe.
        name_variant: a side variant's name from one of its runs; None leaves the recipe's names.
        ask: the question from the runs; None leaves the recipe's.
    """
    report = _rename(_merge(report), name_variant) if report.runs else report
    notes = [report.note]
    if changed:
        told = ", ".join(one if len(one) <= _SHOWN_CHARS else f"{one[:_SHOWN_CHARS]}..." for one in changed)
        before = " What follows was written for the recipe as it is:" if report.note else ""
        notes.insert(0, f"Changed from the recipe: {told}.{before}")
    sides = {run.evaluation.crop_px or run.dataset.frame_px or run.dataset.resident_px for run in report.runs}
    if sides and 0 < min(sides) <= max(sides) <= _SMALL_PX:
        scale = f"Images of {listing([f'{side}' for side in sorted(sides)])} px: far from the papers' scale."
        notes = notes if scale in report.note else [scale, *notes]
    question = ask(report.runs) if ask and report.runs else report.question
    return report.model_copy(update={"question": question, "note": " ".join(filter(None, notes))})


def _merge(report: ReportSpec) -> ReportSpec:
    """Without the variants whose runs another holds as well; their lines of tables are that other's."""
    held: dict[str, set[RunSpec]] = {}
    for run in sorted(report.runs, key=lambda run: bool(run.variant)):
        held.setdefault(run.variant, set()).add(run.model_copy(update={"variant": ""}))
    into: dict[str, str] = {}
    for variant, runs in held.items():
        earlier = (other for other in held if other not in into)
        same = next(other for other in earlier if other == variant or runs <= held[other])
        if same != variant:
            into[variant] = same
    if not into:
        return report
    tables = []
    for table in report.tables:
        rows: dict[tuple[str, str], TableRow] = {}
        for row in table.rows:
            moved = row.model_copy(update={"variant": into.get(row.variant, row.variant)})
            rows.setdefault((moved.variant, moved.arm), moved)
        tables.append(table.model_copy(update={"rows": tuple(rows.values())}))
    kept = tuple(run for run in report.runs if run.variant not in into)
    return report.model_copy(update={"runs": kept, "tables": tuple(tables)})


def _rename(report: ReportSpec, name_variant: NameVariant | None) -> ReportSpec:
    """Side variants under the names that their runs give, also in tables, where the paper's values go with the name."""
    if name_variant is None:
        return report
    names: dict[str, str] = {"": ""}
    for run in report.runs:
        if run.variant not in names:
            name = name_variant(run)
            taken = sum(other == name or other.startswith(f"{name} [") for other in names.values())
            names[run.variant] = f"{name} [{taken + 1}]" if taken else name
    if all(before == after for before, after in names.items()):
        return report
    runs = tuple(run.model_copy(update={"variant": names[run.variant]}) for run in report.runs)
    tables = []
    for table in report.tables:
        rows = tuple(
            row.model_copy(
                update={
                    "variant": names.get(row.variant, row.variant),
                    "label": row.label.replace(row.variant, names[row.variant])
                    if row.variant and row.variant in names
                    else row.label,
                }
            )
            for row in table.rows
        )
        kept = {row.label for row, before in zip(rows, table.rows, strict=True) if row.label == before.label}
        paper = tuple(cell for cell in table.paper if cell.row in kept)
        tables.append(table.model_copy(update={"rows": rows, "paper": paper}))
    return report.model_copy(update={"runs": runs, "tables": tuple(tables)})
