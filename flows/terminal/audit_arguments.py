"""Arguments of ``ssl-backdoor audit``."""

import argparse
from pathlib import Path


def add_audit(parser: argparse.ArgumentParser, json_help: str) -> None:
    """What is audited, and what each needs."""
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    encoder = kinds.add_parser("encoder", help="is there a planted trigger, and how much would have been seen")
    encoder.add_argument("encoder", metavar="SPEC", help="as of evaluate --encoder: LIBRARY/NAME:FILE, train/KEY, ...")
    encoder.add_argument("--images", required=True, metavar="PATH", help="200 images or more that you trust; no labels")
    encoder.add_argument(
        "--siblings",
        nargs="+",
        action="extend",
        default=[],
        metavar="SPEC",
        help="encoders of the same architecture and training believed to have no trigger; the word store takes "
        "those of the store; 19 allow p = 0.05",
    )
    encoder.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="for zero-shot classification")
    encoder.add_argument("--trigger", default=None, metavar="FILE|KIND|JSON", help="a trigger that you suspect")
    encoder.add_argument(
        "--trigger-size", type=float, default=0.2, metavar="N", help="its side: up to 1 a share, else px (default 0.2)"
    )
    encoder.add_argument("--image-size", type=int, default=None, metavar="PX", help="side of the encoder's images")
    encoder.set_defaults(what="encoder")
    encoder.add_argument(
        "--rate", type=_rate, default=0.05, metavar="P", help="false-positive rate of the verdict (default 0.05)"
    )
    data = kinds.add_parser("data", help="which training images are suspicious, and at what error rate")
    data.add_argument("data", metavar="DATA", help="folder, archive, shards or table")
    data.add_argument("--encoder", default="", metavar="SPEC", help="whose features filters see, best trained on DATA")
    data.add_argument("--trusted", default="", metavar="PATH", help="images of the same kind that you looked at")
    data.add_argument("--image-size", type=int, default=None, metavar="PX", help="side of the encoder's images")
    data.add_argument(
        "--rate", type=_rate, default=0.1, metavar="Q", help="false discovery rate of what is left out (default 0.1)"
    )
    data.set_defaults(what="data")
    card = kinds.add_parser("card", help="how often audits are wrong, on the store's encoders of one training")
    card.add_argument("--rate", type=_rate, default=0.05, metavar="P", help="false-positive rate (default 0.05)")
    card.set_defaults(what="card")
    for one in (encoder, card):
        one.add_argument(
            "--budget", type=_minutes, default=30.0, metavar="MINUTES", help="how long it may take (default 30)"
        )
    for one in (encoder, data, card):
        one.add_argument("--seed", type=int, default=0, metavar="N", help="names every random stream")
        one.add_argument("--plugin", action="append", default=[], metavar="FILE.py|MODULE", dest="plugins")
        one.add_argument("--store", default=None, metavar="URI", help="folder, file:// or s3://")
        one.add_argument(
            "--out", type=Path, default=None, metavar="DIR", help="folder of the page (default: audits/ of the home)"
        )
        one.add_argument("--json", action="store_true", help=json_help)
    parser.set_defaults(command="audit")


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a false-positive rate between 0 and 1, found {text!r}")
    return number


def _minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, found {text!r}")
    return number
