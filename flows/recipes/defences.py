"""``defences_ssl`` and ``defences_clip``: attack x defence, as DEFUSE's table of filter and retrain lays it out.

A run is one attack, pair, seed and defence; those that differ in the defence alone share their undefended encoders,
which are trained once. Of a filter a row says what is left after retraining on what it keeps; how well it tells stands
under "Filters and detectors".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flows.recipes import clip, ssl
from flows.wording import ask, methods_of
from ssl_backdoor.defences.fine_tuning import FineTuningSpec
from ssl_backdoor.defences.par import PARSpec
from ssl_backdoor.detection.clustered import ActivationClusteringSpec, SpectralSignaturesSpec
from ssl_backdoor.detection.duplicates import DuplicatesSpec
from ssl_backdoor.detection.image_text_similarity import ImageTextSimilaritySpec
from ssl_backdoor.detection.local_density import LocalDensitySpec
from ssl_backdoor.detection.patchsearch import PatchSearchClassifierSpec, PatchSearchSpec
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022TargetedSpec
from ssl_backdoor.specs import (
    AdamWSpec,
    AttackSpec,
    CosineSpec,
    Defence,
    Filter,
    ReportSpec,
    ResNetSpec,
    RunSpec,
    TableRow,
    TableSpec,
    TargetsSpec,
)

BUDGET = 0.1
"""Share of the training samples that a filter may leave out: DEFUSE's."""
_SMALL: dict[str, Any] = {"num_clusters": 50, "num_flips": 100, "window_frac": 0.375, "budget": BUDGET}
_SMALL_CLASSIFIER: dict[str, Any] = {
    **_SMALL,
    "num_models": 3,
    "max_steps": 1000,
    "patch_frac": (0.25, 0.45),
    "network": ResNetSpec(depth=8, width=16, stem="small"),
}
NOTE = (
    "A filter is computed on the training set of either arm by the encoder that was trained on all of it, leaves out "
    "at most a tenth, and an encoder is trained anew on the rest. DEFUSE's classifier learns from 10,000 clean images; "
    "the row without trusted images does not."
)


class Filters(NamedTuple):
    """Of one size: what depends on the number of samples, of classes and of pixels."""

    k: int
    reference_size: int
    num_clusters: int
    is_small: bool

    def every(self) -> Iterator[Filter]:
        """Those that need no captions."""
        near: dict[str, Any] = {"k": self.k, "reference_size": self.reference_size, "budget": BUDGET}
        yield LocalDensitySpec(measure="k_dist", **near)
        yield LocalDensitySpec(measure="dao", **near)
        yield ActivationClusteringSpec(num_clusters=self.num_clusters, budget=BUDGET)
        yield SpectralSignaturesSpec(num_clusters=self.num_clusters, budget=BUDGET)
        large = {"budget": BUDGET}
        search, classifier = (_SMALL, _SMALL_CLASSIFIER) if self.is_small else (large, large)
        yield PatchSearchSpec.model_validate(search)
        yield PatchSearchClassifierSpec.model_validate(classifier)
        yield PatchSearchClassifierSpec.model_validate(classifier | {"clean_from": "trusted", "trusted_fraction": 0.1})
        yield DuplicatesSpec(budget=BUDGET)


# k exceeds the poisons of one batch: of 256 samples 13 at 5 %, of 512 five at 1 %.
SSL_MINI, SSL_PAPER = Filters(32, 256, 10, is_small=True), Filters(16, 512, 100, is_small=False)
CLIP_MINI, CLIP_PAPER = Filters(16, 512, 20, is_small=True), Filters(16, 512, 1000, is_small=False)


def ask_filters(runs: Sequence[RunSpec]) -> str:
    """Of ``defences_ssl``."""
    if not any(run.defences for run in runs):
        return ask(runs)
    return (
        f"Which filter finds the patched training images of {methods_of(runs)}, and does an encoder trained on what it "
        "keeps lose the backdoor and keep its accuracy?"
    )


def ask_clip(runs: Sequence[RunSpec]) -> str:
    """Of ``defences_clip``."""
    if not any(run.defences for run in runs):
        return ask(runs)
    return (
        f"Which filter finds the poisoned pairs of {methods_of(runs)}, which repair removes what they planted, and at "
        "what cost in accuracy?"
    )


def ssl_filters(scale: ssl.Scale, pairs: int, seeds: int) -> ReportSpec:
    """Saha et al.'s patch, with stickers at mini size, against every filter."""
    is_small = scale is ssl.MINI
    # A quarter of one class of five is 5 % of the data, which a budget of 10 % can hold.
    attacks = [scale.attack(pair, 0.25 if is_small else scale.fraction) for pair in scale.pairs[:pairs]]
    defences = tuple((SSL_MINI if is_small else SSL_PAPER).every())
    runs = [
        RunSpec(
            dataset=clip.with_stickers(clip.MINI if is_small else clip.PAPER, scale.dataset, attack.trigger),
            attack=attack,
            train=scale.methods[scale.main],
            defences=(defence,),
            evaluation=scale.evaluation,
            seed=seed,
            variant=defence.label,
        )
        for defence in defences
        for attack in attacks
        for seed in range(seeds)
    ]
    return ReportSpec(
        recipe="defences_ssl",
        question=ask_filters(runs),
        note=f"{scale.note} {NOTE}",
        runs=tuple(runs),
        tables=tuple(_table("filters", "Filter and retrain", "", defences, probe) for probe in scale.probes),
        unit="seed",
    )


def clip_defences(scale: clip.Scale, pairs: int, seeds: int) -> ReportSpec:
    """Carlini & Terzis's backdoor and targeted poisons against every filter and repair."""
    is_small = scale is clip.MINI
    tuning = scale.cleanclip.fit.model_copy(
        update={
            "optimizer": AdamWSpec(lr=3e-3 if is_small else 3e-6, weight_decay=1e-4, beta2=0.98),
            "schedule": CosineSpec(per="step"),
        }
    )
    trusted = scale.cleanclip.trusted_fraction
    defences: tuple[Defence, ...] = (
        *(CLIP_MINI if is_small else CLIP_PAPER).every(),
        ImageTextSimilaritySpec(budget=BUDGET),
        FineTuningSpec(trusted_fraction=trusted, fit=tuning),
        scale.cleanclip,
        PARSpec(trusted_fraction=trusted, fit=tuning),
        scale.distil,
    )
    runs = [
        RunSpec(
            dataset=clip.with_stickers(scale, scale.dataset, attack.trigger),
            attack=attack,
            train=scale.train,
            defences=(defence,),
            evaluation=scale.evaluation,
            seed=seed,
            variant=f"{name}, {defence.label}",
        )
        for seed in range(seeds)
        for name, attack in _clip_attacks(scale, seed, pairs).items()
        for defence in defences
    ]
    probe = next(iter(scale.evaluation.probes)).kind
    return ReportSpec(
        recipe="defences_clip",
        question=ask_clip(runs),
        note=f"{scale.note} {NOTE} The baseline of a linear probe on clean labels is the row of the undefended encoder "
        "under the probe linear_100, where that is evaluated.",
        runs=tuple(runs),
        tables=(_table("backdoor", "CLIP backdoor: filter and retrain, repair", BACKDOOR, defences, probe),),
        unit="seed",
    )


BACKDOOR, TARGETED = "CLIP backdoor", "targeted poisoning"


def _clip_attacks(scale: clip.Scale, model: int, pairs: int) -> Mapping[str, AttackSpec]:
    targeted = Carlini2022TargetedSpec(num_poisons=8, targets=TargetsSpec(num_targets=4))
    return {BACKDOOR: clip.backdoor(scale, model, pairs), TARGETED: targeted}


def _table(name: str, title: str, attack: str, defences: Sequence[Defence], probe: str) -> TableSpec:
    """The undefended encoders, then each defence on the poisoned and on the clean-trained one."""
    variants = [", ".join(filter(None, (attack, one.label))) for one in defences]
    rows = [
        TableRow(label="clean-trained", variant=variants[0], arm="control"),
        TableRow(label="poisoned", variant=variants[0], arm="suspect"),
    ]
    for one, variant in zip(defences, variants, strict=True):
        rows += [
            TableRow(label=f"poisoned + {one.label}", variant=variant, arm="student"),
            TableRow(label=f"clean-trained + {one.label}", variant=variant, arm="distilled_control"),
        ]
    measures = ("accuracy", "attack_success_rate")
    return TableSpec(name=f"{name}_{probe}", title=title, rows=tuple(rows), probe=probe, measures=measures)
