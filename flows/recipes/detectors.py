"""``detectors``: detectors of inputs on encoders that were poisoned, tampered with or left clean.

Of encoders ``encoder_zoo`` measures the detectors.
"""

from collections.abc import Iterator, Sequence

from flows.recipes import clip, ssl, tamper
from flows.wording import ask, methods_of
from ssl_backdoor.detection.backdoor_ids import BackdoorIDSSpec
from ssl_backdoor.detection.bdetclip import BDetCLIPSpec
from ssl_backdoor.detection.subspace import SubspaceSpec
from ssl_backdoor.specs import ReportSpec, RunSpec

NOTE = (
    "An alarm is a p-value of at most 5 % among clean test images that are not judged, so that 5 % of clean inputs are "
    "promised to raise one; the rate found stands next to it. BDetCLIP and Subspace read texts about the classes: "
    "templates here, where the first has descriptions by a language model."
)


def detectors_mini(pairs: int, seeds: int) -> ReportSpec:
    """BYOL under Saha et al.'s patch with stickers and under BadEncoder, and CLIP under its backdoor."""
    return _report([*_ssl(ssl.MINI, pairs, seeds), *_tampered(pairs, seeds), *_clip(pairs, seeds)])


def detectors_paper(pairs: int, seeds: int) -> ReportSpec:
    """Saha et al.'s patch alone: the other data cannot be given with it."""
    return _report(list(_ssl(ssl.PAPER, pairs, seeds)))


def ask_detectors(runs: Sequence[RunSpec]) -> str:
    """What ``runs`` answer."""
    if not any(run.detectors for run in runs):
        return ask(runs)
    return (
        "Which detector tells inputs with a trigger from clean ones at test time, on encoders of "
        f"{methods_of(runs)}, and what does it say under a trigger that the encoder does not know?"
    )


def _report(runs: list[RunSpec]) -> ReportSpec:
    return ReportSpec(
        recipe="detectors",
        question=ask_detectors(runs),
        note=NOTE,
        runs=tuple(runs),
        unit="seed",
    )


def _ssl(scale: ssl.Scale, pairs: int, seeds: int) -> Iterator[RunSpec]:
    is_small = scale is ssl.MINI
    for attack in (scale.attack(pair) for pair in scale.pairs[:pairs]):
        for seed in range(seeds):
            yield RunSpec(
                dataset=clip.with_stickers(clip.MINI if is_small else clip.PAPER, scale.dataset, attack.trigger),
                attack=attack,
                train=scale.methods[scale.main],
                detectors=(BackdoorIDSSpec(),),
                evaluation=scale.evaluation,
                seed=seed,
                variant=f"{scale.main}, poisoned data" if is_small else "",
            )


def _tampered(pairs: int, seeds: int) -> Iterator[RunSpec]:
    for run in tamper.tamper(tamper.MINI, pairs, seeds).runs:
        if not run.variant:
            yield run.model_copy(update={"detectors": (BackdoorIDSSpec(),), "variant": "BYOL, tampered"})


def _clip(pairs: int, seeds: int) -> Iterator[RunSpec]:
    for seed in range(seeds):
        attack = clip.backdoor(clip.MINI, seed, pairs)
        yield RunSpec(
            dataset=clip.with_stickers(clip.MINI, clip.MINI.dataset, attack.trigger),
            attack=attack,
            train=clip.MINI.train,
            detectors=(BackdoorIDSSpec(), BDetCLIPSpec(), SubspaceSpec()),
            evaluation=clip.MINI.evaluation,
            seed=seed,
            variant="CLIP, poisoned pairs",
        )
