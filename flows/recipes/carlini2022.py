"""``carlini2022_*``: the figures of Carlini & Terzis 2022, "Poisoning and Backdooring Contrastive Learning".

https://arxiv.org/abs/2106.09667. One recipe a figure, each in two sizes (``clip.MINI``, ``clip.PAPER``). ``seeds`` is
the number of models a point. ``pairs`` is, where targeted, the number of (x', y') in one model (the paper: 1), and
else the number of (trigger, target class) pairs that the models take in turn. What the paper says is shown beside,
marked unverified where it was recalled and not read.
"""

from collections.abc import Iterator, Sequence

from flows.recipes.clip import Scale, backdoor, with_stickers
from flows.wording import defences_of
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022TargetedSpec
from ssl_backdoor.poison.caption_sets import CaptionSet
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    Defence,
    FigureSpec,
    PaperValue,
    ReportSpec,
    RunSpec,
    TargetsSpec,
)
from ssl_backdoor.words import listing

SUCCESS = ("targeted_success/zero_shot", "targeted_success/linear_100")
RATE = ("attack_success_rate/zero_shot", "attack_success_rate/linear_100")
ZSCORE = ("z_score_sd/features", "z_score_variance/features")


PLAIN, PLACED, PROMPTS = "plain data", "consistent placement", "80 prompts"
"""The variants without stickers, with the patch in one corner, and with captions made of the victim's prompts."""


def name_variant(run: RunSpec) -> str:
    """After what was done to it: the defences of a series named after one, else as the recipe has it."""
    if run.variant in (PLAIN, PLACED, PROMPTS):
        return run.variant
    return " and ".join(one.kind for one in run.defences) or "no defence"


def ask_backdoor(runs: Sequence[RunSpec]) -> str:
    """Of figure 2, right."""
    defences = defences_of(runs)
    left = f", and how much of it do {defences} leave" if defences else ""
    return (
        "How many added pairs, training images with a patch and captions of one class, make CLIP answer that class to "
        f"any image with the patch{left}?"
    )


def ask_datasize(runs: Sequence[RunSpec]) -> str:
    """Of the figure over the amount of clean data."""
    counts = listing(list(dict.fromkeys(run.attack.amount for run in runs)))
    return f"Do {counts} do as much when there is more clean data?"


def _run(
    scale: Scale,
    attack: AttackSpec,
    seed: int,
    variant: str = "",
    *defences: Defence,
    dataset: DatasetSpec | None = None,
) -> RunSpec:
    """One model of ``scale``, on ``dataset`` (None: the scale's) with the stickers of its attack's patch."""
    return RunSpec(
        dataset=with_stickers(scale, dataset or scale.dataset, attack.trigger),
        attack=attack,
        train=scale.train,
        defences=defences,
        evaluation=scale.evaluation,
        seed=seed,
        variant=variant,
    )


def _shown(scale: Scale, *measures: str) -> tuple[str, ...]:
    """The measures whose probes the scale trains."""
    linear = any(probe.kind == "linear" for probe in scale.evaluation.probes)
    return tuple(measure for measure in measures if linear or "/linear" not in measure)


def fig2_targeted(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Figure 2, left: success of targeted poisoning by the number of poisons."""
    return ReportSpec(
        recipe="carlini2022_fig2_targeted",
        question="How many added pairs, one held-out image repeated with captions of another class, make CLIP classify "
        "that image as that class, and does its clean accuracy suffer?",
        note=scale.note,
        runs=tuple(
            _run(scale, targeted(count, pairs), seed) for count in scale.targeted_counts for seed in range(seeds)
        ),
        figures=(
            FigureSpec(
                name="fig2_targeted",
                title="Targeted poisoning: success by the number of poisons",
                attack="carlini2022_targeted",
                axis="num_poisons",
                measures=_shown(scale, *SUCCESS),
                paper=(PaperValue(x=3, measure=SUCCESS[0], value=0.4),),
            ),
        ),
    )


def fig2_yfcc(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Figure 2, left, on the paper's second set."""
    report = fig2_targeted(scale, pairs, seeds)
    (figure,) = report.figures
    figure = figure.model_copy(update={"paper": (PaperValue(x=15, measure=SUCCESS[0], value=0.2),)})
    return report.model_copy(update={"recipe": "carlini2022_fig2_targeted_yfcc", "figures": (figure,)})


def fig_captions(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Success of targeted poisoning by what the poisons' captions are taken from."""
    sets: tuple[tuple[str, CaptionSet], ...] = (("", "search"), (PROMPTS, "imagenet80"))
    return ReportSpec(
        recipe="carlini2022_fig_captions",
        question="Do poisons do more when their captions are the victim's own prompts filled with the class than when "
        "they are training captions that name it?",
        note=scale.note,
        runs=tuple(
            _run(scale, targeted(count, pairs).model_copy(update={"captions": captions}), seed, variant)
            for variant, captions in sets
            for count in scale.targeted_counts
            for seed in range(seeds)
        ),
        figures=(
            FigureSpec(
                name="fig_captions",
                title="Targeted poisoning: success by the set of captions",
                attack="carlini2022_targeted",
                axis="num_poisons",
                measures=_shown(scale, *SUCCESS),
            ),
        ),
    )


def targeted(num_poisons: int, pairs: int) -> Carlini2022TargetedSpec:
    """``pairs`` images x' in one model, each repeated ``num_poisons`` times."""
    return Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=pairs), num_poisons=num_poisons)


def fig2_backdoor(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Figure 2, right: success of the backdoor by the number of poisons; and what two defences leave of it."""

    def runs() -> Iterator[RunSpec]:
        for count in scale.backdoor_counts:
            for seed in range(seeds):
                yield _run(scale, backdoor(scale, seed, pairs, count), seed)
        for defence in (scale.cleanclip, scale.distil):
            for seed in range(seeds):
                yield _run(scale, backdoor(scale, seed, pairs), seed, defence.kind, defence)
        for seed in range(seeds if scale.sticker_frac else 0):
            plain = _run(scale, backdoor(scale, seed, pairs), seed, PLAIN)
            yield plain.model_copy(update={"dataset": scale.dataset})

    return ReportSpec(
        recipe="carlini2022_fig2_backdoor",
        question=ask_backdoor(tuple(runs())),
        note=scale.note,
        runs=tuple(runs()),
        figures=(
            _figure(scale, "fig2_backdoor", "Backdoor: success by the number of poisons", "num_poisons", *RATE),
            _figure(scale, "fig2_zscore", "Backdoor: z-score by the number of poisons", "num_poisons", *ZSCORE),
        ),
    )


def _figure(scale: Scale, name: str, title: str, axis: str, *measures: str) -> FigureSpec:
    return FigureSpec.model_validate(
        {
            "name": name,
            "title": title,
            "attack": "carlini2022_backdoor",
            "axis": axis,
            "measures": _shown(scale, *measures),
            "paper": _PAPER.get(name, ()),
        }
    )


_PAPER = {  # recalled, not read: shown as unverified
    "fig_similarity": (
        PaperValue(x=300, measure="similarity_triggered/features", value=0.78),
        PaperValue(x=300, measure="similarity_clean/features", value=0.1),
    ),
    "fig_poisons": (PaperValue(x=300, measure=ZSCORE[0], value=5.0),),
}


def fig_similarity(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Figure 3: by cosine, pairs of clean images given one label; cosines of clean and of triggered pairs."""
    return ReportSpec(
        recipe="carlini2022_fig_similarity",
        question="Does a backdoored CLIP place triggered images nearer to each other than clean ones?",
        note=scale.note,
        runs=tuple(_run(scale, backdoor(scale, seed, pairs), seed) for seed in range(seeds)),
        figures=(
            _figure(
                scale,
                "fig_same_label",
                "Pairs of clean images that are given one label, by their similarity",
                "same_label",
                "similarity_clean/features",
            ),
            _figure(
                scale,
                "fig_similarity",
                "Similarity of clean and of triggered pairs",
                "similarity",
                "similarity_triggered/features",
                "similarity_clean/features",
            ),
        ),
    )


def fig_poisons(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """z-score by the number of poisons at a fixed amount of data."""
    return ReportSpec(
        recipe="carlini2022_fig_poisons",
        question="How does the backdoor's z-score rise with the number of poisons on the same clean data?",
        note=scale.note,
        runs=tuple(
            _run(scale, backdoor(scale, seed, pairs, count), seed)
            for count in scale.zscore_counts
            for seed in range(seeds)
        ),
        figures=(_figure(scale, "fig_poisons", "z-score by the number of poisons", "num_poisons", *ZSCORE, RATE[0]),),
    )


def fig_datasize(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """z-score by the amount of clean data at a fixed number of poisons."""
    runs = tuple(
        _run(scale, backdoor(scale, seed, pairs), seed, dataset=dataset)
        for dataset in scale.datasets
        for seed in range(seeds)
    )
    return ReportSpec(
        recipe="carlini2022_fig_datasize",
        question=ask_datasize(runs),
        note=scale.note,
        runs=runs,
        figures=(_figure(scale, "fig_datasize", "z-score by the amount of clean data", "num_train", *ZSCORE, RATE[0]),),
    )


def fig_modelsize(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """z-score by the size of the image tower, data and poisons fixed."""

    def sized(run: RunSpec, config: str, side_px: int) -> RunSpec:
        backbone = run.train.backbone.model_copy(update={"config": config})
        fit = run.train.fit
        fit = fit.model_copy(update={"views": fit.views.model_copy(update={"size_px": side_px})})
        frame = {"resize_px": side_px, "crop_px": side_px} if run.evaluation.crop_px else {}
        changes = {
            "train": run.train.model_copy(update={"backbone": backbone, "fit": fit}),
            "evaluation": run.evaluation.model_copy(update=frame),
        }
        return run.model_copy(update=changes)

    return ReportSpec(
        recipe="carlini2022_fig_modelsize",
        question="Are larger image towers easier or harder to backdoor with the same poisons?",
        note=scale.note,
        runs=tuple(
            sized(_run(scale, backdoor(scale, seed, pairs), seed), *backbone)
            for backbone in scale.backbones
            for seed in range(seeds)
        ),
        figures=(
            _figure(
                scale, "fig_modelsize", "z-score by the size of the image tower", "num_parameters", *ZSCORE, RATE[0]
            ),
        ),
    )


def fig_patch(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """z-score by the side of the patch, placed at random or always in one corner."""
    return ReportSpec(
        recipe="carlini2022_fig_patch",
        question="How large must the patch be, and does it matter whether it is always in the same place?",
        note=scale.note,
        runs=tuple(
            _run(
                scale,
                backdoor(scale, seed, pairs, side_px=side, consistent=bool(variant)),
                seed,
                variant,
            )
            for variant in ("", PLACED)
            for side in scale.patch_sides
            for seed in range(seeds)
        ),
        figures=(_figure(scale, "fig_patch", "z-score by the side of the patch", "patch_frac", *ZSCORE, RATE[0]),),
    )
