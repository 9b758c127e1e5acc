"""Named experiments: a recipe is a function of (pairs, seeds) that states a question and the runs that answer it.

``pairs`` takes the first N of the recipe's trigger/target pairs, all fixed before the first run; ``seeds`` repeats
each pair with seeds 0 to N - 1: a table's cell is the mean over both, its interval is over seeds. The figures of
Carlini & Terzis have a model a seed, and ``pairs`` as their file says.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from flows.recipes import attacks, carlini2022, cifar10, clip, defences, demo, own, saha2022, small, ssl, tamper
from flows.wording import Ask, NameVariant
from flows.wording import ask as ask_any
from ssl_backdoor.errors import SpecError
from ssl_backdoor.plugins import load
from ssl_backdoor.specs import FilesSourceSpec, ReportSpec
from ssl_backdoor.words import did_you_mean
from tasks.planner import Sources

Size = Literal["mini", "paper"]
_MOST_PAIRS = 1000
_SAHA, _CARLINI, _COMPARED = "Saha et al. 2022", "Carlini & Terzis 2022", "Attacks and defences compared"


class Recipe(NamedTuple):
    """A recipe and what ``--pairs`` and ``--seeds`` are when not given."""

    build: Callable[[int, int], ReportSpec]
    max_pairs: int
    pairs: int
    seeds: int
    needs_data: bool
    summary: str
    name_variant: NameVariant | None = None
    """A side variant's name from one of its runs, where settings can make the recipe's own name false."""
    ask: Ask | None = None
    """The question from the runs, where settings can make the recipe's own false."""
    is_fixed: bool = False
    """Whether its runs are written out, so that neither pairs nor seeds are chosen."""
    paper: str = ""
    """Whose experiment it is."""
    follow: Callable[[Sources, Mapping[str, str], Sequence[str]], own.Plan] | None = None
    """Of a recipe whose runs follow from the data: it looks at them, in place of ``build``."""


class Sized(NamedTuple):
    """A recipe in two sizes: for two cores, and at the paper's own scale."""

    mini: Recipe
    paper: Recipe


def choose(name: str, size: Size | None = None) -> Recipe:
    """The recipe of that name, in that size where it has two ("mini" when not given).

    Raises:
        SpecError: no such recipe, or a size asked of one that has a single size.
    """
    recipe = RECIPES.get(name) or _OWN.get(name)
    if recipe is None:
        known = f"; the recipes are {', '.join(RECIPES)}, or give FILE.py:NAME, FILE.yaml or report/KEY of your own"
        raise SpecError(f"there is no recipe {name!r}{did_you_mean(name, RECIPES) or known}")
    if isinstance(recipe, Sized):
        return recipe.paper if size == "paper" else recipe.mini
    if size is not None:
        two = ", ".join(one for one, sized in RECIPES.items() if isinstance(sized, Sized))
        raise SpecError(f"{name} has a single size: leave --size {size} out; the recipes with two are {two}")
    return recipe


def register(name: str, recipe: Recipe) -> None:
    """Make ``recipe`` one that ``choose`` finds, in this process alone."""
    _OWN[name] = recipe


def load_own(name: str) -> None:
    """Make ``FILE.py:NAME`` a recipe of that name: a ``Recipe``, or a function of (pairs, seeds), in the user's file.

    Only the command line calls this: a flow that others start must not run files of the worker's machine.

    Raises:
        SpecError: the file cannot be loaded, or has neither under that name.
    """
    file, _, attribute = name.rpartition(":")
    found = vars(load(file)).get(attribute)
    if not callable(found) and not isinstance(found, Recipe):
        raise SpecError(f"{file} has no recipe {attribute!r}: expected a function of (pairs, seeds), or a Recipe")
    if not isinstance(found, Recipe):
        report = found(1, 1)
        if not isinstance(report, ReportSpec):
            raise SpecError(f"{name}(1, 1) is to be a ReportSpec, found {type(report).__name__}")
        needs_data = any(isinstance(run.dataset.source, FilesSourceSpec) for run in report.runs)
        found = Recipe(found, _MOST_PAIRS, 1, 1, needs_data, report.question)
    register(name, found)


def _figure(
    build: Callable[[clip.Scale, int, int], ReportSpec],
    summary: str,
    mini: tuple[int, int, int] = (10, 10, 4),
    paper: tuple[int, int, int] = (8, 8, 8),
    ask: Ask | None = None,
) -> Sized:
    """``mini`` and ``paper``: max_pairs, pairs and seeds."""
    name = carlini2022.name_variant
    sizes = (
        Recipe(partial(build, clip.MINI), *mini, True, f"{summary}; captioned CIFAR-10 at 16 px", name, ask),
        Recipe(partial(build, clip.PAPER), *paper, True, f"{summary}; CC3M, RN50", name, ask),
    )
    return Sized(*(one._replace(paper=_CARLINI) for one in sizes))


def _table(
    build: Callable[[ssl.Scale, int, int], ReportSpec],
    summary: str,
    name: NameVariant = saha2022.name_by_method,
    ask: Ask | None = None,
) -> Sized:
    """Two pairs and three seeds of the mini size; the paper has ten pairs and one seed."""
    sizes = (
        Recipe(partial(build, ssl.MINI), 10, 2, 3, True, f"{summary}; 5 classes of CIFAR-10 at 16 px", name, ask),
        Recipe(partial(build, ssl.PAPER), 10, 10, 1, True, f"{summary}; ImageNet-100, ResNet-18", name, ask),
    )
    return Sized(*(one._replace(paper=_SAHA) for one in sizes))


def _cifar10(build: Callable[[int, int], ReportSpec], method: str) -> Recipe:
    summary = f"ten pairs, {method}, 5 classes of CIFAR-10 at 16 px"
    return Recipe(build, 10, 10, 1, True, summary, small.name_by_rate, cifar10.ask, paper=_SAHA)


def _compared(
    mini: Callable[[int, int], ReportSpec],
    paper: Callable[[int, int], ReportSpec],
    summary: str,
    data: tuple[str, str],
    amounts: tuple[tuple[int, int, int], tuple[int, int, int]],
    ask: Ask | None = None,
) -> Sized:
    """``data`` and ``amounts`` (max_pairs, pairs and seeds) of both sizes."""
    return Sized(
        *(
            Recipe(build, *amount, True, f"{summary}; {images}", ask=ask, paper=_COMPARED)
            for build, images, amount in zip((mini, paper), data, amounts, strict=True)
        )
    )


_OWN: dict[str, "Recipe | Sized"] = {}
RECIPES: Mapping[str, Recipe | Sized] = {
    "demo": Recipe(
        demo.demo, 1, 1, 1, False, "both papers in small on the embedded image set; minutes on two cores", ask=demo.ask
    ),
    "own": Recipe(
        own.without_data,
        _MOST_PAIRS,
        1,
        1,
        True,
        "your own images, or image-text pairs; what is not asked for follows from a look at them",
        ask=ask_any,
        follow=own.follow,
    ),
    "cifar10_byol": _cifar10(cifar10.cifar10_byol, "BYOL"),
    "cifar10_moco": _cifar10(cifar10.cifar10_moco, "MoCo v2"),
    "saha2022_table1": _table(saha2022.table1, "every method under the targeted attack"),
    "saha2022_table2_defence": _table(
        saha2022.table2_defence,
        "distillation on less and less trusted data",
        saha2022.name_by_trust,
        saha2022.ask_trust,
    ),
    "saha2022_ablation_rate": _table(
        saha2022.ablation_rate, "the attack by its share of the target", small.name_by_rate, saha2022.ask_rate
    ),
    "saha2022_ablation_labels": _table(saha2022.ablation_labels, "the attack by the probe's labels"),
    "saha2022_untargeted": _table(saha2022.untargeted, "the patch on images of every category"),
    "saha2022_transfer": _table(saha2022.transfer, "probed on another labelled set (--probe-data PATH)"),
    "carlini2022_fig2_targeted": _figure(
        carlini2022.fig2_targeted, "success of targeted poisoning by the count", mini=(8, 6, 6), paper=(8, 1, 32)
    ),
    "carlini2022_fig2_backdoor": _figure(
        carlini2022.fig2_backdoor,
        "success of the backdoor by the count, two defences",
        paper=(8, 8, 32),
        ask=carlini2022.ask_backdoor,
    ),
    "carlini2022_fig2_targeted_yfcc": Recipe(
        partial(carlini2022.fig2_yfcc, clip.YFCC),
        *(8, 1, 32, True, "success of targeted poisoning; YFCC-15M, RN50"),
        paper=_CARLINI,
    ),
    "carlini2022_fig_captions": _figure(
        carlini2022.fig_captions,
        "success of targeted poisoning by the set of captions",
        mini=(8, 6, 6),
        paper=(8, 1, 8),
    ),
    "carlini2022_fig_similarity": _figure(carlini2022.fig_similarity, "cosines of clean and of triggered pairs"),
    "carlini2022_fig_poisons": _figure(carlini2022.fig_poisons, "z-score by the count"),
    "carlini2022_fig_datasize": _figure(
        carlini2022.fig_datasize, "z-score by the amount of clean data", ask=carlini2022.ask_datasize
    ),
    "carlini2022_fig_modelsize": _figure(carlini2022.fig_modelsize, "z-score by the size of the image tower"),
    "carlini2022_fig_patch": _figure(carlini2022.fig_patch, "z-score by side and placement of the patch"),
    "attacks_ssl": _compared(
        partial(attacks.attacks_ssl, attacks.MINI),
        partial(attacks.attacks_ssl, attacks.PAPER),
        "published attacks by four methods, as many poisons each",
        ("5 classes of CIFAR-10", "ImageNet-100, ResNet-18"),
        ((10, 2, 3), (10, 1, 3)),
    ),
    "attacks_clip": _compared(
        partial(attacks.attacks_clip, clip.MINI),
        partial(attacks.attacks_clip, clip.PAPER),
        "published triggers on CLIP, as many poisons each",
        ("captioned CIFAR-10 at 16 px", "CC3M, RN50"),
        ((10, 2, 3), (8, 1, 3)),
    ),
    "defences_ssl": _compared(
        partial(defences.ssl_filters, ssl.MINI),
        partial(defences.ssl_filters, ssl.PAPER),
        "the patch against every filter",
        ("BYOL, 5 classes of CIFAR-10 at 16 px", "MoCo v2, ImageNet-100"),
        ((10, 2, 2), (10, 10, 1)),
        defences.ask_filters,
    ),
    "defences_clip": _compared(
        partial(defences.clip_defences, clip.MINI),
        partial(defences.clip_defences, clip.PAPER),
        "CLIP's poisons against filters and repairs",
        ("captioned CIFAR-10 at 16 px", "CC3M, RN50"),
        ((10, 10, 2), (8, 8, 8)),
        defences.ask_clip,
    ),
    "tamper": _compared(
        partial(tamper.tamper, tamper.MINI),
        partial(tamper.tamper, tamper.PAPER),
        "a backdoor put into a finished encoder",
        ("5 classes of CIFAR-10 at 16 px", "probed on --probe-data; CIFAR-10, ResNet-18"),
        ((10, 2, 2), (10, 1, 3)),
        tamper.ask,
    ),
    "encoder_zoo": Recipe(
        tamper.encoder_zoo,
        10,
        10,
        7,
        True,
        "detectors on 21 clean, 21 tampered and 21 data-poisoned encoders; 5 classes of CIFAR-10 at 16 px",
        paper=_COMPARED,
    ),
}
