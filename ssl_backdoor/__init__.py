"""Measures how much a few poisoned samples corrupt self-supervised pre-training, and whether a defence undoes it.

The library: no orchestrator, usable from a notebook. ``specs`` is the page to read first; what a notebook needs stands
here, from ``ssl_backdoor.api``, and is imported when it is asked for: ``import ssl_backdoor`` alone is light.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_backdoor.api import (
        Images,
        detect,
        evaluate,
        features,
        ingest,
        load_encoder,
        load_images,
        measurements,
        open_store,
        poison,
        repair,
        stamp,
        train,
    )

    __version__: str

__all__ = [
    "Images",
    "__version__",
    "detect",
    "evaluate",
    "features",
    "ingest",
    "load_encoder",
    "load_images",
    "measurements",
    "open_store",
    "poison",
    "repair",
    "stamp",
    "train",
]


class _CallablePackage(ModuleType):
    """``ssl_backdoor.train``, ``.poison`` and ``.evaluate``: folders of the library, and functions of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _of_api(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        if name in __all__ and isinstance(value, ModuleType):  # how an import binds a folder
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _of_api(name: str) -> Any:
    return getattr(importlib.import_module("ssl_backdoor.api"), name)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ssl-backdoor")
    if name in __all__:
        return _of_api(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
