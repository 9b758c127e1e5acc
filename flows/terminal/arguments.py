"""Command-line arguments of ``ssl-backdoor``."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, get_args

from flows.terminal.examples import epilog
from flows.terminal.output import print_lines
from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import Stage
from ssl_backdoor.words import did_you_mean

MANY_RUNS = 1000
_AS_WRITTEN = argparse.RawDescriptionHelpFormatter
_JSON = "print one JSON object on stdout and nothing else"
_FIRST = (
    "first: ssl-backdoor run demo, ssl-backdoor recipes, ssl-backdoor inspect DATA; each COMMAND --help has examples"
)
CALIBRATION_S = 30
Command: TypeAlias = Callable[[argparse.Namespace], int]
"""Runs a command; returns its exit code."""
_DESCRIPTION = (
    "Measures how much a few poisoned samples corrupt self-supervised pre-training, and whether a defence undoes it."
)

SHORT_OPTIONS = {
    "attack": ("KIND", "what the attacker does, such as saha2022_targeted"),
    "method": ("KIND", "how encoders are trained, such as byol, simclr, clip"),
    "image_size": ("PX", "side to which all images are brought"),
    "backbone": ("NAME", "what is trained, such as resnet18, timm/resnet26 or FILE.py:FUNCTION"),
    "target": ("CLASS", "the class that is attacked"),
    "trigger": ("FILE", "your picture as the trigger, or a kind such as grid"),
    "poisons": ("N", "how many images are poisoned, or pairs added"),
    "poison_fraction": ("F", "the same as a share of the target's images, or of all"),
    "epochs": ("E", "of each training; those of defences change in proportion"),
    "defence": ("KIND", "defences to try, such as compress; none for none"),
}
"""Those of ``flows/shorthand.py``."""


class _Parser(argparse.ArgumentParser):
    """One whose mistakes are told in one printable sentence, and that notices that nobody reads its help."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print_lines(message.rstrip("\n").split("\n"))

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the usage."""
        raise SpecError(f"{message}; `{self.prog} --help` lists what there is")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        known = [str(one) for one in action.choices or ()]
        if known and value not in known and (near := did_you_mean(str(value), known)):
            raise SpecError(
                f"there is no {(action.metavar or action.dest or 'value')!s:.80} {value!r:.80}{near}".lower()
            )
        super()._check_value(action, value)


def parse(arguments: Sequence[str] | None, do: Mapping[str, Command]) -> argparse.Namespace:
    """Parse ``arguments`` (default: this process's); ``command`` is the function of ``do`` to call."""
    for text in sys.argv[1:] if arguments is None else arguments:
        if any("\ud800" <= each <= "\udfff" for each in text):
            raise SpecError(f"expected arguments in UTF-8, found {text[:200]!r}; rename that file, or type it anew")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["evaluate"] and any(one.partition("=")[0] == "--encoder" for one in given):
        found = _encoder_parser().parse_args(given[1:])
        found.command = do["evaluate --encoder"]
        return found
    parser = _Parser(prog="ssl-backdoor", description=_DESCRIPTION, epilog=_FIRST, formatter_class=_AS_WRITTEN)
    parser.add_argument("--version", action="version", version=f"ssl-backdoor {metadata.version('ssl-backdoor')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a recipe end to end"), "report")
    for stage in get_args(Stage):
        also = "; with --encoder SPEC: measure an encoder of your own" if stage == "evaluate" else ""
        _add_run(commands.add_parser(stage, help=f"run a recipe up to its {stage} stage{also}"), stage)
    _add_estimate(commands.add_parser("estimate", help="estimate the time and storage of a run"))
    _add_inspect(
        commands.add_parser("inspect", help="what your data hold and how they are read, before anything is computed")
    )
    _add_compare(commands.add_parser("compare", help="several reports on one page, with their table as CSV"))
    _add_looks(commands)
    export = commands.add_parser("export", help="write a dataset, poisoned or clean, as plain WebDataset shards")
    export.add_argument("ref", metavar="STAGE/KEY", help="an ingest or a poison artifact")
    export.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    export.add_argument("--store", default=None)
    export.set_defaults(command="export")
    reindex = commands.add_parser("reindex", help="write every report of the store that MLflow lacks to MLflow")
    _add_plugin(reindex)
    reindex.add_argument("--store", default=None)
    reindex.set_defaults(command="reindex")
    _add_housekeeping(commands)
    env = commands.add_parser("env", help="print the lines that point a shell at the services of `make up`")
    env.add_argument(
        "--logins", action="store_true", help="print instead how to log in to Prefect's and MLflow's pages"
    )
    env.set_defaults(command="env")
    browse = commands.add_parser("browse", help="Prefect's and MLflow's pages of this home, until Ctrl-C")
    browse.set_defaults(command="browse")
    doctor = commands.add_parser("doctor", help="check versions, devices, store and disk; say how to fix them")
    doctor.add_argument("--store", default=None)
    doctor.set_defaults(command="doctor")
    completion = commands.add_parser("completion", help="print the lines that have a shell complete this command")
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"))
    completion.set_defaults(command="completion")
    for name, one in commands.choices.items():
        one.epilog, one.formatter_class = epilog(name), _AS_WRITTEN
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    found = parser.parse_args(given)
    found.command, found.arguments = do[found.command], given
    return found


def _add_looks(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """What shows recipes, fields and artifacts, and runs nothing."""
    recipes = commands.add_parser("recipes", help="list the recipes")
    recipes.add_argument("--json", action="store_true", help=_JSON)
    recipes.set_defaults(command="recipes")
    describe = commands.add_parser("describe", help="fields, types, defaults, allowed values: what --set can change")
    describe.add_argument("path", metavar="PATH", nargs="?", default="", help="such as attack or train.method.byol")
    _add_plugin(describe)
    describe.set_defaults(command="describe")
    listed = commands.add_parser("list", help="list the artifacts of the store: key, age, size, title")
    listed.add_argument("stage", metavar="STAGE", nargs="?", choices=get_args(Stage), help="of this stage alone")
    listed.add_argument("--store", default=None, metavar="URI", help="folder, file:// or s3://")
    listed.add_argument("--json", action="store_true", help=_JSON)
    listed.set_defaults(command="list")
    show = commands.add_parser("show", help="show the whole spec of a recipe, or an artifact: spec, inputs, summary")
    _add_recipe(show, "STAGE/KEY of an artifact (a unique beginning of the key is enough), or a recipe as of run")
    show.set_defaults(command="show")


def _add_housekeeping(commands: "argparse._SubParsersAction[_Parser]") -> None:
    status = commands.add_parser(
        "status", help="show what the store holds, what is unfinished and what runs; read-only"
    )
    gc = commands.add_parser("gc", help="list unneeded files and artifacts of the store, or delete them")
    for parser in (status, gc):
        parser.add_argument("--store", default=None, metavar="URI", help="folder, file:// or s3://")
        parser.add_argument("--json", action="store_true", help=_JSON)
    status.set_defaults(command="status")
    gc.add_argument("--delete", action="store_true", help="delete them; without this nothing is changed")
    gc.add_argument("--unreached", action="store_true", help="also finished artifacts that no report was made from")
    gc.add_argument(
        "--older-than",
        type=_days,
        default=None,
        metavar="DAYS",
        help="minimum age (default: 1 for rubbish, 30 for what a run may still need); 0 only while nothing runs",
    )
    gc.add_argument(
        "--forget",
        nargs="+",
        default=[],
        metavar="KEY",
        help="treat these reports, and what only they were made from, as unreached",
    )
    gc.set_defaults(command="gc")


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        dest="plugins",
        help="load attacks, triggers, defences, ... of your own first; may be repeated",
    )


def _add_recipe(parser: argparse.ArgumentParser, help_text: str = "") -> None:
    named = "a name from `ssl-backdoor recipes`, FILE.yaml, FILE.json, FILE.py:NAME, or report/KEY"
    recipe: Any = parser.add_argument("recipe", metavar="RECIPE", help=help_text or named)
    recipe.completer = _complete_recipe  # which argcomplete looks for
    _add_plugin(parser)
    parser.add_argument("--data", default=None, metavar="PATH", help="folder, archive or shards; not for embedded data")
    parser.add_argument(
        "--test-data", default=None, metavar="PATH", help="labelled test images, of recipes whose data have none"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings", help="e.g. train.fit.epochs=3"
    )
    _add_shorthands(parser)
    parser.add_argument(
        "--store", default=None, metavar="URI", help="folder, file:// or s3:// (default: the home's store)"
    )
    parser.add_argument(
        "--size", choices=("mini", "paper"), default=None, help="of a recipe with two: mini (default) or the paper's"
    )
    parser.add_argument("--seeds", type=_positive, default=None, metavar="N", help="seeds 0 to N-1: models a point")
    parser.add_argument("--pairs", type=_positive, default=None, metavar="N", help="the first N trigger/target pairs")
    parser.add_argument("--methods", default=None, metavar="A,B", help="only runs of these methods, such as byol,msf")
    parser.add_argument("--probe-data", default=None, metavar="PATH", help="another labelled set, of transfer recipes")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _complete_recipe(prefix: str, **_: object) -> list[str]:
    """Recipes, and files as they come."""
    from argcomplete.completers import FilesCompleter

    from flows.recipes import RECIPES

    files: list[str] = FilesCompleter(("yaml", "yml", "json", "py"))(prefix)
    return [*(name for name in RECIPES if name.startswith(prefix)), *files]


def _add_shorthands(parser: argparse.ArgumentParser) -> None:
    """``--target cat``, which becomes the setting ``target=cat``."""
    group = parser.add_argument_group("short names of settings", "of every run that they fit; --set is made after them")
    for name, (metavar, text) in SHORT_OPTIONS.items():
        many: dict[str, Any] = {"nargs": "+", "action": "extend"} if name == "defence" else {}
        group.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text, **many)


def short_settings(options: argparse.Namespace) -> list[str]:
    """The settings that the short options stand for."""
    given = {name: getattr(options, name) for name in SHORT_OPTIONS}
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    if ".py:" in (texts["backbone"] or ""):  # the user's own code, which a flow of others must not read
        texts["train.backbone"], texts["backbone"] = texts["backbone"], None
    return [f"{name}={text}" for name, text in texts.items() if text is not None]


def _add_run(parser: argparse.ArgumentParser, until: Stage) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--print-spec", action="store_true", help="print the whole spec, with defaults, and run nothing"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be reused and what made; run nothing")
    parser.add_argument("--yes", action="store_true", help=f"start more than {MANY_RUNS:,} runs without asking")
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="replicas of one training")
    parser.set_defaults(command="run", until=until)


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--devices", type=_positive, metavar="N", help="devices like this machine's (default: its own number)"
    )
    parser.add_argument(
        "--images",
        type=_positive,
        nargs=2,
        metavar=("TRAIN", "TEST"),
        help="their numbers, for data that are not there yet",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=CALIBRATION_S,
        metavar="N",
        help=f"approximate time for calibration (default {CALIBRATION_S}): longer is more precise",
    )
    parser.set_defaults(command="estimate")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, archive, shards or table")
    parser.add_argument("--test-data", default=None, metavar="PATH", help="labelled test images, if DATA have none")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings", help="e.g. dataset.classes=[]"
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="folder of the page (default: inspections/ of the home)"
    )
    parser.add_argument("--json", action="store_true", help=_JSON)
    parser.set_defaults(command="inspect")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    groups = ("report", "recipe", "dataset", "method", "attack", "defence", "variant")  # report.compare.GROUPS
    parser.add_argument(
        "reports", nargs="+", metavar="report/KEY", help="two or more; URI/report/KEY names one of another store"
    )
    parser.add_argument("--by", choices=groups, default="report", help="what lines stand below each other by")
    parser.add_argument("--store", default=None, metavar="URI", help="folder, file:// or s3://")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="folder of the page (default: comparisons/ of the home)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    parser.set_defaults(command="compare")


def _encoder_parser() -> "_Parser":
    parser = _Parser(
        prog="ssl-backdoor evaluate --encoder SPEC",
        usage="ssl-backdoor evaluate --encoder SPEC --data PATH [options]",
        description="Measures an encoder of your own on your data, clean and under a trigger.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""SPEC is one of
  train/KEY, defend/KEY, tamper/KEY   one of the store's encoders
  LIBRARY/NAME:FILE                   timm, torchvision or open_clip, with a safetensors or torch file of weights;
                                      FILE may be the word random: an untrained network
  FOLDER                              as Hugging Face's save_pretrained leaves it
  FILE.py:FUNCTION                    returns a torch.nn.Module: images (B, 3, S, S) in [0, 1] to features (B, D)

examples:
  ssl-backdoor evaluate --encoder torchvision/resnet34:weights.pt --data photos
  ssl-backdoor evaluate --encoder timm/vit_tiny_patch16_224:w.safetensors --data photos \\
    --trigger sticker.png --target cat --reference timm/vit_tiny_patch16_224:clean.safetensors""",
    )
    parser.add_argument("--encoder", required=True, metavar="SPEC", help="what is measured")
    parser.add_argument("--reference", default=None, metavar="SPEC", help="one believed clean, measured beside it")
    parser.add_argument("--data", required=True, metavar="PATH", help="labelled images: folder, archive, shards, table")
    parser.add_argument("--test-data", default=None, metavar="PATH", help="labelled test images, if the data have none")
    parser.add_argument("--trigger", default=None, metavar="FILE|KIND|JSON", help="what is put on test images")
    parser.add_argument(
        "--trigger-size",
        type=_positive_number,
        default=0.2,
        metavar="N",
        help="its side: up to 1 a share of the image's side, else px (default 0.2)",
    )
    parser.add_argument("--target", default=None, metavar="CLASS", help="what triggered images are to be taken for")
    group = parser.add_argument_group("preprocessing, where the library, folder or module does not say it right")
    group.add_argument("--image-size", type=_positive, default=None, metavar="PX", help="side of its images")
    group.add_argument("--mean", type=_three, default=None, metavar="R,G,B", help="of pixels in [0, 1]")
    group.add_argument("--std", type=_three, default=None, metavar="R,G,B", help="of pixels in [0, 1]")
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"), default=None, help="how images are resized")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of places, unseen triggers and probes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings", help="dataset.* or evaluation.*"
    )
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE.py|MODULE", dest="plugins")
    parser.add_argument("--store", default=None, metavar="URI", help="folder, file:// or s3://")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return parser


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e5:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def _three(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three numbers as 0.5,0.5,0.5, found {text!r}") from None
    return red, green, blue


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return number


def _days(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of days, 0 or more, found {text!r}")
    return number
