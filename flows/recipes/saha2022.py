"""``saha2022_*``: the tables of Saha et al. 2022, "Backdoor Attacks on Self-Supervised Learning".

https://arxiv.org/abs/2105.10123. One recipe a table, each in two sizes (``ssl.MINI``, ``ssl.PAPER``). A run's variant
names its line. ``pairs`` takes the first N trigger/category pairs, ``seeds`` repeats all with seeds 0 to N - 1. What
the paper says is shown beside, marked unverified where it was recalled and not read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flows.recipes.ssl import Scale
from flows.wording import ask, defences_of, methods_of
from ssl_backdoor.specs import (
    AttackSpec,
    Defence,
    OtherDataSpec,
    OwnDataSpec,
    PaperCell,
    ReportSpec,
    RunSpec,
    TableRow,
    TableSpec,
    TrainSpec,
)
from ssl_backdoor.words import method_label

FALSE_POSITIVES = ("accuracy", "target_false_positives")
BACKDOORED = ("MoCo v2", "BYOL", "MSF")
"""The methods that the paper finds vulnerable; the tables about something else than the method are about them."""
Line = tuple[TrainSpec, float, tuple[Defence, ...]]
"""What is trained, the poisoned share of the target's images, and the defences."""


def _undefended(scale: Scale, labels: Iterable[str]) -> dict[str, Line]:
    return {label: (scale.methods[label], scale.fraction, ()) for label in labels}


def _runs(
    scale: Scale,
    pairs: int,
    seeds: int,
    lines: Mapping[str, Line],
    probe_on: OtherDataSpec | OwnDataSpec | None = None,
) -> Iterator[RunSpec]:
    """``lines``: by label."""
    for label, (train, fraction, defences) in lines.items():
        for pair in scale.pairs[:pairs]:
            for seed in range(seeds):
                yield _run(scale, scale.attack(pair, fraction), train, seed, label, defences, probe_on)


def _run(
    scale: Scale,
    attack: AttackSpec,
    train: TrainSpec,
    seed: int,
    variant: str,
    defences: tuple[Defence, ...] = (),
    probe_on: OtherDataSpec | OwnDataSpec | None = None,
) -> RunSpec:
    return RunSpec(
        dataset=scale.dataset,
        attack=attack,
        train=train,
        defences=defences,
        evaluation=scale.evaluation_of(variant),
        probe_on=probe_on or OwnDataSpec(),
        seed=seed,
        variant=variant,
    )


def _report(
    recipe: str, question: str, scale: Scale, runs: Iterable[RunSpec], tables: Iterable[TableSpec], note: str = ""
) -> ReportSpec:
    return ReportSpec(
        recipe=recipe,
        question=question,
        note=f"{scale.note} {note}".strip(),
        runs=tuple(runs),
        tables=tuple(tables),
        unit="seed",
    )


def _tables(
    name: str,
    title: str,
    rows: Iterable[TableRow],
    scale: Scale,
    measures: tuple[str, ...] = FALSE_POSITIVES,
    paper: tuple[PaperCell, ...] = (),
) -> Iterator[TableSpec]:
    """One table a probe; the paper's values stand beside the head that they are of, or at small size the first."""
    kept = tuple(rows)
    for probe in scale.probes:
        yield TableSpec(
            name=f"{name}_{probe}",
            title=title,
            rows=kept,
            probe=probe,
            measures=measures,
            paper=paper if probe == scale.recalled_under else (),
        )


def _own_head_tables(scale: Scale, paper: tuple[PaperCell, ...]) -> Iterator[TableSpec]:
    """Each method under the head that it was published with."""
    for probe, labels in scale.own_heads.items():
        yield TableSpec(
            name=f"table1_own_{probe}",
            title="Under the head of the authors' code",
            rows=_lines(labels),
            probe=probe,
            measures=FALSE_POSITIVES,
            paper=tuple(cell for cell in paper if cell.row in labels),
        )


def _lines(labels: Iterable[str]) -> tuple[TableRow, ...]:
    return tuple(TableRow(label=label, variant=label) for label in labels)


_TABLE1 = {  # recalled, not read: linear probe on 1 % of the labels, mean over ten pairs
    "MoCo v2": (49.9, 23.0, 47.0, 22.8, 50.1, 26.2, 31.8, 1683.2),
    "BYOL": (60.0, 19.2, 53.2, 15.4, 61.6, 32.6, 38.9, 1442.3),
    "MSF": (59.0, 20.8, 54.6, 13.0, 60.1, 22.9, 39.6, 830.2),
    "Jigsaw": (19.2, 59.6, 17.0, 47.4, 20.2, 54.1, 17.8, 57.6),
    "RotNet": (20.3, 47.6, 17.4, 48.8, 20.3, 48.5, 13.7, 62.8),
    "MAE": (64.2, 25.2, 54.9, 13.0, 64.6, 22.7, 55.0, 81.8),
}


def _four_cells() -> tuple[PaperCell, ...]:
    cells = []
    for label, values in _TABLE1.items():
        places = [(arm, on, name) for arm in ("control", "suspect") for on in ("clean", "triggered") for name in "af"]
        for (arm, condition, name), value in zip(places, values, strict=True):
            share = name == "a"
            cells.append(
                PaperCell.model_validate(
                    {
                        "row": label,
                        "arm": arm,
                        "condition": condition,
                        "name": FALSE_POSITIVES[0 if share else 1],
                        "value": value / 100 if share else value,
                        "num_images": 0 if share else _PAPER_IMAGES,
                    }
                )
            )
    return tuple(cells)


def table1(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Every method: clean and poisoned training, clean and triggered test images."""
    lines = _undefended(scale, scale.methods)
    return _report(
        "saha2022_table1",
        "Which self-supervised methods, pre-trained on images of which a few of one category carry a patch, answer "
        "that category to any image with the patch: those that pull views together, or pretext tasks and "
        "reconstruction too?",
        scale,
        _runs(scale, pairs, seeds, lines),
        (
            *_tables(
                "table1",
                "Methods under the targeted attack",
                _lines(lines),
                scale,
                paper=() if scale.own_heads else _four_cells(),
            ),
            *_own_head_tables(scale, _four_cells()),
        ),
        "All methods are compared under the same heads, kNN and a converged linear probe on features; the paper's own "
        "heads are the probes linear_sgd, linear_adam, linear_layers and fine_tune"
        + (", each in a table of its own." if scale.own_heads else ", which are not evaluated at this size."),
    )


_PAPER_IMAGES = 4950  # test images of the paper's 99 other classes, which its false positives are among


_DEFENCE = {  # recalled, not read: MoCo v2
    "poisoned": ("suspect", 50.1, 26.2, 31.8, 1683.2),
    "poisoned + CompRess, 25 % trusted": ("student", 44.6, 34.5, 42.0, 37.9),
    "poisoned + CompRess, 10 % trusted": ("student", 38.3, 40.5, 35.7, 44.8),
    "poisoned + CompRess, 5 % trusted": ("student", 32.1, 41.0, 29.4, 53.7),
}


def name_by_method(run: RunSpec) -> str:
    """A line of a table over methods."""
    return method_label(run.train.method.kind)


def name_by_trust(run: RunSpec) -> str:
    """A line of a table over trusted shares."""
    shares = [f"{100 * share:g}" for one in run.defences if (share := one.trusted_fraction)]
    return f"{' and '.join(shares)} % trusted" if shares else " and ".join(one.label for one in run.defences)


def ask_trust(runs: Sequence[RunSpec]) -> str:
    """Of table 2."""
    if not (defences := defences_of(runs)):
        return ask(runs)
    return f"How much of the backdoor of encoders of {methods_of(runs)} does {defences} remove, and what does it cost?"


def ask_rate(runs: Sequence[RunSpec]) -> str:
    """Of the ablation over the poisoned share."""
    return f"How does the attack on {methods_of(runs)} fade with the number of poisoned images?"


def table2_defence(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Distillation on less and less trusted data."""
    variants = {f"{100 * fraction:g} % trusted": fraction for fraction in scale.trusted_fractions}
    lines = {
        label: (
            scale.methods[scale.main],
            scale.fraction,
            (scale.compress.model_copy(update={"trusted_fraction": fraction}),),
        )
        for label, fraction in variants.items()
    }
    first = next(iter(variants))
    rows = (
        TableRow(label="clean-trained", variant=first, arm="control"),
        TableRow(label="poisoned", variant=first, arm="suspect"),
        *(TableRow(label=f"poisoned + CompRess, {label}", variant=label, arm="student") for label in variants),
        *(
            TableRow(label=f"clean-trained + CompRess, {label}", variant=label, arm="distilled_control")
            for label in variants
        ),
    )
    paper = tuple(
        PaperCell.model_validate(
            {
                "row": row,
                "arm": arm,
                "condition": condition,
                "name": name,
                "value": value,
                "num_images": 0 if name == FALSE_POSITIVES[0] else _PAPER_IMAGES,
            }
        )
        for row, (arm, *values) in _DEFENCE.items()
        for (condition, name), value in zip(
            ((condition, name) for condition in ("clean", "triggered") for name in FALSE_POSITIVES),
            (value / 100 if index % 2 == 0 else value for index, value in enumerate(values)),
            strict=True,
        )
    )
    runs = tuple(_runs(scale, pairs, seeds, lines))
    return _report(
        "saha2022_table2_defence",
        ask_trust(runs),
        scale,
        runs,
        _tables("table2_defence", "Distillation on trusted data", rows, scale, paper=paper),
        "The paper's method is MoCo v2.",
    )


def ablation_rate(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Fewer and fewer poisons."""
    lines = {
        f"{100 * fraction:g} % of the target": (scale.methods[scale.main], fraction, ()) for fraction in scale.fractions
    }
    runs = tuple(_runs(scale, pairs, seeds, lines))
    return _report(
        "saha2022_ablation_rate",
        ask_rate(runs),
        scale,
        runs,
        _tables("ablation_rate", "The attack by the poisoned share of the target", _lines(lines), scale),
    )


def ablation_labels(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """The same encoders under probes on 1, 10 and 100 % of the labels."""
    lines = _undefended(scale, BACKDOORED)
    return _report(
        "saha2022_ablation_labels",
        "Does a backdoored encoder mislead a classifier more when that has fewer labels?",
        scale,
        _runs(scale, pairs, seeds, lines),
        _tables(
            "ablation_labels",
            "The attack by the probe's labels",
            _lines(lines),
            scale._replace(probes=("linear_1", "linear_10", "linear_100")),
        ),
    )


def untargeted(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """The patch on random images of all categories: success is accuracy lost on triggered images."""
    methods = {label: scale.methods[label] for label in BACKDOORED}
    classes = len(scale.dataset.classes)
    runs = (
        _run(scale, scale.untargeted(trigger_seed, scale.fraction / classes), train, seed, label)
        for label, train in methods.items()
        for trigger_seed, _ in scale.pairs[:pairs]
        for seed in range(seeds)
    )
    return _report(
        "saha2022_untargeted",
        "Does a patch on random images of every category cost accuracy on images with the patch?",
        scale,
        runs,
        _tables("untargeted", "Untargeted attack", _lines(methods), scale, measures=("accuracy",)),
        "As many images are poisoned as in the targeted attack; the share that the paper poisons is not known here.",
    )


def transfer(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """The same encoders probed on another labelled set, given with --probe-data."""
    lines = _undefended(scale, BACKDOORED)
    return _report(
        "saha2022_transfer",
        "Does the trigger still mislead when the encoder is used for another task, with other classes?",
        scale,
        _runs(scale, pairs, seeds, lines, OtherDataSpec(dataset=scale.transfer)),
        _tables(
            "transfer",
            "Another labelled set",
            _lines(lines),
            scale,
            measures=("accuracy", "top_class_share"),
        ),
        "The target category is none of the other set's: what counts is accuracy lost and how many triggered images "
        "fall into one class.",
    )
