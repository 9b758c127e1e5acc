"""Examples of each command, as its ``--help`` shows them; a test parses every one."""

from collections.abc import Mapping

_STAGE = ("demo", "cifar10_byol --data PATH --pairs 1 --json")
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "run": (
        "demo",
        "cifar10_byol --data cifar-10-python.tar.gz --pairs 1",
        "cifar10_byol --data PATH --set train.method.kind=simclr --dry-run",
        "demo --print-spec > mine.yaml",
        "mine.yaml --set train.fit.epochs=3",
        "report/4f1c --set evaluation.unseen_triggers=20",
        "ideas.py:my_recipe --plugin ideas.py",
    ),
    **dict.fromkeys(
        ("ingest", "poison", "filter", "train", "tamper", "defend", "detect", "evaluate", "report"), _STAGE
    ),
    "estimate": ("demo", "saha2022_table1 --size paper --images 127000 5000 --devices 4"),
    "inspect": ("photos/", "pairs.tsv --test-data photos/ --json"),
    "audit": (
        "encoder torchvision/resnet18:weights.pt --images photos/ --siblings torchvision/resnet18:other.pt",
        "encoder train/4f1c --images photos/ --siblings store --budget 5",
        "data pairs/ --encoder open_clip/RN50:weights.pt --trusted looked-at/",
        "card --budget 60",
    ),
    "compare": ("report/4f1c report/9a02", "report/4f1c report/9a02 --by defence"),
    "recipes": ("", "--json"),
    "describe": ("", "attack", "train.method.byol", "train.fit.epochs", "defences --plugin ideas.py"),
    "list": ("", "train", "report --json"),
    "show": ("demo", "cifar10_byol --set train.fit.epochs=3", "train/4f1c"),
    "export": ("poison/4f1c --out poisoned/",),
    "reindex": ("", "--store s3://bucket/prefix"),
    "status": ("", "--json"),
    "gc": ("", "--unreached --older-than 7 --delete"),
    "env": ("", "--logins"),
    "browse": ("",),
    "doctor": ("",),
    "completion": ("bash", "zsh"),
}


def epilog(command: str) -> str:
    """What stands below the options of ``command``."""
    lines = (f"  ssl-backdoor {command} {example}".rstrip() for example in EXAMPLES.get(command, ()))
    more = '\n\nload it with: eval "$(ssl-backdoor completion bash)"' if command == "completion" else ""
    return "examples:\n" + "\n".join(lines) + more
