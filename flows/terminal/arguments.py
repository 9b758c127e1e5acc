"""Command-line arguments of ``ssl-backdoor``."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, get_args

from flows.terminal.output import print_lines
from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import Stage

MANY_RUNS = 1000
CALIBRATION_S = 30
Command: TypeAlias = Callable[[argparse.Namespace], int]
"""Runs a command; returns its exit code."""
_DESCRIPTION = (
    "Measures how much a few poisoned samples corrupt self-supervised pre-training, and whether a defence undoes it."
)


class _Parser(argparse.ArgumentParser):
    """One whose mistakes are told in one printable sentence, and that notices that nobody reads its help."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print_lines(message.rstrip("\n").split("\n"))

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the usage."""
        raise SpecError(f"{message}; `{self.prog} --help` lists what there is")


def parse(arguments: Sequence[str] | None, do: Mapping[str, Command]) -> argparse.Namespace:
    """Parse ``arguments`` (default: this process's); ``command`` is the function of ``do`` to call."""
    for text in sys.argv[1:] if arguments is None else arguments:
        if any("\ud800" <= each <= "\udfff" for each in text):
            raise SpecError(f"expected arguments in UTF-8, found {text[:200]!r}; rename that file, or type it anew")
    parser = _Parser(prog="ssl-backdoor", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a recipe end to end"), "report")
    for stage in get_args(Stage):
        _add_run(commands.add_parser(stage, help=f"run a recipe up to its {stage} stage"), stage)
    _add_estimate(commands.add_parser("estimate", help="estimate the time and storage of a run"))
    _add_inspect(
        commands.add_parser("inspect", help="what your data hold and how they are read, before anything is computed")
    )
    _add_compare(commands.add_parser("compare", help="several reports on one page, with their table as CSV"))
    recipes = commands.add_parser("recipes", help="list the recipes")
    recipes.set_defaults(command="recipes")
    show = commands.add_parser("show", help="show an artifact: its spec, inputs, summary and files")
    show.add_argument("ref", metavar="STAGE/KEY", help="a unique beginning of the key is enough")
    show.add_argument("--store", default=None, help="folder, file:// or s3:// (default: the home's store)")
    show.set_defaults(command="show")
    export = commands.add_parser("export", help="write a dataset, poisoned or clean, as plain WebDataset shards")
    export.add_argument("ref", metavar="STAGE/KEY", help="an ingest or a poison artifact")
    export.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    export.add_argument("--store", default=None)
    export.set_defaults(command="export")
    reindex = commands.add_parser("reindex", help="write every report of the store that MLflow lacks to MLflow")
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
    found = parser.parse_args(arguments)
    found.command = do[found.command]
    return found


def _add_housekeeping(commands: "argparse._SubParsersAction[_Parser]") -> None:
    status = commands.add_parser(
        "status", help="show what the store holds, what is unfinished and what runs; read-only"
    )
    gc = commands.add_parser("gc", help="list unneeded files and artifacts of the store, or delete them")
    for parser in (status, gc):
        parser.add_argument("--store", default=None, metavar="URI", help="folder, file:// or s3://")
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
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


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `ssl-backdoor recipes`, or FILE.py:NAME")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        dest="plugins",
        help="load attacks, triggers, defences, ... of your own first; may be repeated",
    )
    parser.add_argument("--data", default=None, metavar="PATH", help="folder, archive or shards; not for embedded data")
    parser.add_argument(
        "--test-data", default=None, metavar="PATH", help="labelled test images, of recipes whose data have none"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings", help="e.g. train.fit.epochs=3"
    )
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
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def _add_run(parser: argparse.ArgumentParser, until: Stage) -> None:
    _add_recipe(parser)
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
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
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
