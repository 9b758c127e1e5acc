"""Open a source of images, detecting its layout, and compute its digest."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ssl_backdoor.data.archives import Files, FolderFiles, TarFiles, is_hidden, open_files
from ssl_backdoor.data.cifar import Cifar, find_cifar
from ssl_backdoor.data.items import Source, printable
from ssl_backdoor.data.joined import Joined
from ssl_backdoor.data.official import Official, OfficialSet, find_official, require_official
from ssl_backdoor.data.pair_table import SUFFIXES, PairTable
from ssl_backdoor.data.parquet_images import ParquetImages, image_columns
from ssl_backdoor.data.scan import Scan
from ssl_backdoor.data.scenes import Scenes
from ssl_backdoor.data.splits import SplitWords
from ssl_backdoor.data.trees import Tree, find_rule
from ssl_backdoor.data.webshards import WebShards
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, ScenesSourceSpec, SourceSpec, TxtCaptions

_MAX_SHARDS = 250_000
_MAX_PATTERN_CHARS = 2**25
"""Of all names that a brace pattern stands for."""
_BLOCK_BYTES = 2**20


def open_source(spec: DatasetSpec, data: str | None, test_data: str | None = None) -> Source:
    """The images that ``spec`` names.

    Args:
        spec: what is wanted.
        data: a folder, an archive, a table or a brace pattern of shards.
        test_data: the same, of the second source where the spec has one.

    Raises:
        DataError: nothing is there, or it has not the layout that the spec demands.
        SpecError: ``test_data`` is missing, or given and not asked for.
    """
    second = _second_source(spec, test_data)
    words = SplitWords(spec.splits)
    source = _open(spec.source, data, words, spec)
    if second:
        source = Joined(source, _open(second, test_data, words, spec))
    source.found.words = words
    return source


def source_digest(spec: DatasetSpec, data: str | None, test_data: str | None = None) -> str:
    """Identity of the raw data: sha256 of the archives' content, or of a folder's (path, size, mtime_ns) list.

    A table of pairs: its content and the (path, size, mtime_ns) of the images it lists. Two sources: of both digests.

    Raises:
        DataError: nothing is there.
        SpecError: ``test_data`` is missing, or given and not asked for.
    """
    second = _second_source(spec, test_data)
    first = _digest(spec.source, data)
    return hashlib.sha256(f"{first}\n{_digest(second, test_data)}".encode()).hexdigest() if second else first


def _second_source(spec: DatasetSpec, test_data: str | None) -> FilesSourceSpec | None:
    """Where test images come from, where that is another source.

    Raises:
        SpecError: the spec and what was given do not fit.
    """
    if isinstance(spec.test_source, FilesSourceSpec):
        if not test_data:
            raise SpecError(
                "these runs take their test images from a second, labelled source: give it with --test-data PATH, or "
                """--set 'dataset.test_source={"kind":"own"}' where the training data have a labelled test split"""
            )
        return spec.test_source
    if test_data:
        raise SpecError(
            f"these runs take their test images from the data themselves, but --test-data {test_data} was given: "
            """leave it out, or --set 'dataset.test_source={"kind":"files"}'"""
        )
    return None


def _open(source: SourceSpec, data: str | None, words: SplitWords, spec: DatasetSpec) -> Source:
    if isinstance(source, ScenesSourceSpec):
        return Scenes(source)
    paths = _paths(data)
    if _is_table(source, paths):
        return PairTable(paths[0], source, words)
    if (official := _official(source, paths)) is not None:
        return Official(*official)
    if len(paths) > 1 or source.layout in ("webdataset", "parquet") or paths[0].suffix.lower() == ".parquet":
        return _open_shards(source.layout, paths, words, spec.txt_captions)
    files = open_files(paths[0])
    if source.layout == "cifar":
        return Cifar(files)
    scan = Scan(files)
    layout = source.layout if source.layout == "folder" else _find_layout(paths[0], files, scan)
    if layout == "cifar":
        return Cifar(files, find_cifar(scan.cifar))
    if layout in ("webdataset", "parquet"):
        return _open_shards(layout, paths, words, spec.txt_captions)
    rule = find_rule(scan.folder_counts(), words, takes_outer=source.layout == "folder")
    names_no_class = rule.shape == "flat" or not rule.has_classes
    if scan.num_sidecars and scan.is_numbered:  # img2dataset's "files": 00000/000000000.jpg with .txt and .json
        rule, names_no_class = rule._replace(shape="flat"), True
    if isinstance(files, TarFiles) and scan.num_sidecars and names_no_class and not rule.splits:
        return WebShards(paths, words, spec.txt_captions)
    reads_sidecars = scan.num_sidecars > 0 and (names_no_class or spec.captions_required)
    return Tree(files, scan, rule, words, spec.txt_captions if reads_sidecars else None)


def _find_layout(path: Path, files: Files, scan: Scan) -> str:
    """folder, cifar, webdataset or parquet.

    Raises:
        DataError: nothing that can be read is there, or more than one thing.
    """
    is_folder = isinstance(files, FolderFiles)
    readings = {"folder": f"{scan.num_images} images in folders"} if scan.num_images else {}
    if (folder := find_cifar(scan.cifar)) is not None:
        readings["cifar"] = f"CIFAR's batches in {folder or 'the root'}"
    if is_folder and scan.shards:
        readings["webdataset"] = f"{len(scan.shards)} tar files such as {printable(scan.shards[0])}"
    if is_folder and (tables := [name for name in scan.parquets if image_columns(path / name) is not None]):
        readings["parquet"] = f"{len(tables)} Parquet files with images such as {printable(tables[0])}"
    if len(readings) > 1:
        raise DataError(
            f"{path} holds {' and '.join(readings.values())}: give one of them alone as --data, or say which is meant "
            f"with --set dataset.source.layout={' or '.join(readings)}"
        )
    return next(iter(readings), "folder")


def _open_shards(layout: str, paths: list[Path], words: SplitWords, txt_captions: TxtCaptions) -> Source:
    suffix = ".parquet" if layout == "parquet" or paths[0].suffix.lower() == ".parquet" else ".tar"
    folder = paths[0] if paths[0].is_dir() else None
    if folder is not None:
        names = [(name, path) for name, path in FolderFiles(folder).walk() if not is_hidden(name)]
        paths = [Path(path) for name, path in names if name.lower().endswith(suffix)]
    if suffix == ".parquet":
        paths = [path for path in paths if image_columns(path) is not None]
        if not paths:
            raise DataError("expected Parquet files with a column of images (bytes), but found none")
        source: Source = ParquetImages(paths, words)
    elif not paths or not all(isinstance(open_files(path), TarFiles) for path in paths):
        raise DataError("expected WebDataset shards: tar files, a folder that holds some, or a brace pattern of them")
    else:
        source = WebShards(paths, words, txt_captions)
    return source


def _digest(spec: SourceSpec, data: str | None) -> str:
    if isinstance(spec, ScenesSourceSpec):
        return "scenes"
    paths = _paths(data)
    digest = hashlib.sha256()
    if paths[0].is_dir():
        official = _official(spec, paths)
        for name, file in FolderFiles(official[1] if official else paths[0]).walk():
            status = os.stat(file)
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    elif _is_table(spec, paths):
        table = PairTable(paths[0], spec)
        digest.update(_file_digest(paths[0]).encode())
        for item in table.listing():
            if not item.problem:
                size, changed = table.status(item.name)
                digest.update(f"{item.name}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape"))
    elif len(paths) == 1:
        return _file_digest(paths[0])
    else:
        for path in paths:
            digest.update(f"{path.name}\0{_file_digest(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): check its path and permissions") from error
    return digest.hexdigest()


def _paths(data: str | None) -> list[Path]:
    if not data:
        raise DataError("this recipe needs images of yours: give a folder or an archive with --data")
    whole = Path(os.path.expanduser(data))
    try:
        paths = [whole] if whole.exists() or "{" not in data else [Path(path) for path in expand_braces(str(whole))]
        if (missing := next((path for path in paths if not path.exists()), None)) is not None:
            raise DataError(f"there is nothing at {missing!s:.500}: check the path")
    except OSError as error:  # a name that no file can have, or a folder that may not be entered
        raise DataError(f"cannot look at {data:.200} ({error.strerror}): check its path and permissions") from error
    if strange := [path for path in paths if not (path.is_file() or path.is_dir())]:  # a pipe would be read for ever
        raise DataError(f"{strange[0]} is neither a file nor a folder: give a folder, an archive, shards or a table")
    if empty := [path for path in paths if path.is_file() and path.stat().st_size == 0]:  # or a file of the kernel
        raise DataError(f"{empty[0]} is empty: give a folder, an archive, shards or a table")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """``a-{000..002}.tar`` and ``{a,b}.tar`` spelt out.

    Raises:
        DataError: a range that counts down, or more than 250,000 names or 32 MiB of them.
    """
    paths, is_done = [pattern], False
    while not is_done:
        is_done, before, paths = True, paths, []
        for path in before:
            if (found := re.search(r"\{([^{}]*)\}", path)) is None:
                paths.append(path)
                continue
            is_done = False
            head, tail = path[: found.start()], path[found.end() :]
            choices = _choices(found[1], pattern)
            if max(len(paths) + len(choices), len(before)) > min(_MAX_SHARDS, _MAX_PATTERN_CHARS // len(path)):
                raise DataError(f"the pattern {pattern:.200} names more than {_MAX_SHARDS} shards, or too long ones")
            paths += [head + choice + tail for choice in choices]
    return paths


def _choices(inside: str, pattern: str) -> Sequence[str]:
    """What stands in one pair of braces, one after the other."""
    if (numbers := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)) is None:
        return inside.split(",")
    low, high = numbers.groups()
    if int(high) < int(low):
        raise DataError(f"the pattern {pattern:.200} counts down from {low} to {high}: give the smaller number first")
    if int(high) - int(low) >= _MAX_SHARDS:
        raise DataError(f"the pattern {pattern:.200} names more than {_MAX_SHARDS} shards")
    width = len(low) if low.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]


def _is_table(spec: FilesSourceSpec, paths: list[Path]) -> bool:
    """Whether the data are a table of pairs, by its name.

    Raises:
        DataError: the spec demands a table and the data are something else.
    """
    if spec.layout != "pairs":
        suffix = paths[0].suffix.lower()
        is_named = spec.layout == "auto" and len(paths) == 1 and suffix in SUFFIXES and paths[0].is_file()
        return is_named and not (suffix == ".parquet" and image_columns(paths[0]) is not None)
    if len(paths) > 1 or paths[0].is_dir():
        raise DataError(f"expected one CSV, TSV or Parquet table of image paths and captions, but found {paths[0]}")
    return True


def _official(spec: FilesSourceSpec, paths: list[Path]) -> tuple[OfficialSet, Path] | None:
    """The official set that the data are, and its folder; None for any other data.

    Raises:
        DataError: the spec demands one and there is none, or none that can be read as it lies there.
    """
    if spec.layout == "official":
        return require_official(paths[0])
    return find_official(paths[0]) if spec.layout == "auto" and paths[0].is_dir() else None
