"""Open a source of images, detecting its layout, and compute its digest."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ssl_backdoor.data.archives import Files, FolderFiles, TarFiles, is_hidden, open_files
from ssl_backdoor.data.cifar import Cifar, find_cifar
from ssl_backdoor.data.items import Source, printable
from ssl_backdoor.data.joined import Joined
from ssl_backdoor.data.official import Official, OfficialSet, find_official, require_official
from ssl_backdoor.data.pair_table import SUFFIXES, PairTable
from ssl_backdoor.data.parquet_images import ParquetImages, image_columns
from ssl_backdoor.data.remote import (
    RemoteFile,
    RemoteFolder,
    SourceFile,
    SourcePath,
    file_path,
    find_remote,
    relative_names,
    scheme_of,
    uri_of,
)
from ssl_backdoor.data.scan import Scan
from ssl_backdoor.data.scenes import Scenes
from ssl_backdoor.data.splits import SplitWords
from ssl_backdoor.data.trees import Tree, find_rule
from ssl_backdoor.data.webshards import WebShards
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, ScenesSourceSpec, SourceSpec

_MAX_SHARDS = 250_000
_MAX_PATTERN_CHARS = 2**25
"""Of all names that a brace pattern stands for."""
_BLOCK_BYTES = 2**20


def open_source(spec: DatasetSpec, data: str | None, test_data: str | None = None) -> Source:
    """The images that ``spec`` names.

    Args:
        spec: what is wanted.
        data: a folder, an archive, a table or a brace pattern of shards: a path, file://, s3:// or https://.
        test_data: the same, of the second source where the spec has one.

    Raises:
        DataError: nothing is there, or it has not the layout that the spec demands.
        SpecError: ``test_data`` is missing, or given and not asked for.
    """
    second = _second_source(spec, test_data)
    words = SplitWords(spec.splits)
    source = _open(spec.source, data, words, spec)
    if second:
        tests = _open(second, test_data, words, spec)
        paths = *source.found.paths, *tests.found.paths
        source = Joined(source, tests)
        source.found.paths = paths
    source.found.words = words
    return source


def source_digest(spec: DatasetSpec, data: str | None, test_data: str | None = None) -> str:
    """Identity of the raw data: sha256 of the archives' content, or of a folder's (path, size, mtime_ns) list.

    A table of pairs: its content and the (path, size, mtime_ns) of the images it lists. On S3 and https: the (name,
    size, tag) list of the files, of which none is read. Where images are indexed in place, also where they lie. Two
    sources: of both digests.

    Raises:
        DataError: nothing is there.
        SpecError: ``test_data`` is missing, or given and not asked for.
    """
    second = _second_source(spec, test_data)
    first = _digest(spec.source, data, is_copied=spec.copy)
    return _digest_of([f"{first}\n", _digest(second, test_data, is_copied=spec.copy)]) if second else first


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
    paths = locate(data)
    opened = _open_paths(source, paths, words, spec)
    opened.found.paths = opened.found.paths or paths
    return opened


def _open_paths(source: FilesSourceSpec, paths: list[SourcePath], words: SplitWords, spec: DatasetSpec) -> Source:
    if _is_table(source, paths):
        return PairTable(_on_disk(paths[0], "a table of pairs"), source, words)
    if (official := _official(source, paths)) is not None:
        return Official(*official)
    if len(paths) > 1 or source.layout in ("webdataset", "parquet") or paths[0].suffix.lower() == ".parquet":
        return _open_shards(source.layout, paths, words, spec)
    files = paths[0] if isinstance(paths[0], RemoteFolder) else open_files(paths[0])
    if source.layout == "cifar":
        return Cifar(files)
    scan = Scan(files)
    layout = source.layout if source.layout == "folder" else _find_layout(paths[0], files, scan)
    if layout == "cifar":
        return Cifar(files, find_cifar(scan.cifar))
    if layout in ("webdataset", "parquet"):
        return _open_shards(layout, paths, words, spec)
    rule = find_rule(scan.folder_counts(), words, takes_outer=source.layout == "folder")
    names_no_class = rule.shape == "flat" or not rule.has_classes
    if scan.num_sidecars and scan.is_numbered:  # img2dataset's "files": 00000/000000000.jpg with .txt and .json
        rule, names_no_class = rule._replace(shape="flat"), True
    if isinstance(files, TarFiles) and scan.num_sidecars and names_no_class and not rule.splits:
        return WebShards([files.path], words, spec.txt_captions, is_indexed=not spec.copy)
    reads_sidecars = scan.num_sidecars > 0 and (names_no_class or spec.captions_required)
    return Tree(files, scan, rule, words, spec.txt_captions if reads_sidecars else None, is_indexed=not spec.copy)


def _find_layout(path: SourcePath, files: Files, scan: Scan) -> str:
    """folder, cifar, webdataset or parquet.

    Raises:
        DataError: nothing that can be read is there, or more than one thing.
    """
    is_folder = path.is_dir()
    readings = {"folder": f"{scan.num_images} images in folders"} if scan.num_images else {}
    if (folder := find_cifar(scan.cifar)) is not None:
        readings["cifar"] = f"CIFAR's batches in {folder or 'the root'}"
    if is_folder and scan.shards:
        readings["webdataset"] = f"{len(scan.shards)} tar files such as {printable(scan.shards[0])}"
    named = dict(path.files) if isinstance(path, RemoteFolder) else {}
    parquets = scan.parquets if is_folder else []
    if tables := [name for name in parquets if image_columns(named.get(name) or Path(str(path)) / name) is not None]:
        readings["parquet"] = f"{len(tables)} Parquet files with images such as {printable(tables[0])}"
    if len(readings) > 1:
        raise DataError(
            f"{path} holds {' and '.join(readings.values())}: give one of them alone as --data, or say which is meant "
            f"with --set dataset.source.layout={' or '.join(readings)}"
        )
    return next(iter(readings), "folder")


def _open_shards(layout: str, paths: Sequence[SourcePath], words: SplitWords, spec: DatasetSpec) -> Source:
    suffix = ".parquet" if layout == "parquet" or paths[0].suffix.lower() == ".parquet" else ".tar"
    files = [path for path in paths if not isinstance(path, RemoteFolder)]
    if paths[0].is_dir():
        files = [file for name, file in _walk(paths[0]) if not is_hidden(name) and name.lower().endswith(suffix)]
    if suffix == ".parquet":
        files = [file for file in files if image_columns(file) is not None]
        if not files:
            raise DataError("expected Parquet files with a column of images (bytes), but found none")
        source: Source = ParquetImages(files, words)
    elif not files or not all(isinstance(open_files(file), TarFiles) for file in files):
        raise DataError("expected WebDataset shards: tar files, a folder that holds some, or a brace pattern of them")
    else:
        source = WebShards(files, words, spec.txt_captions, is_indexed=not spec.copy)
    source.found.paths = files
    return source


def _walk(folder: SourcePath) -> Iterator[tuple[str, SourceFile]]:
    """(relative name, file) of every file below ``folder``."""
    if isinstance(folder, RemoteFolder):
        yield from folder.files
    else:
        yield from ((name, Path(path)) for name, path in FolderFiles(Path(str(folder))).walk())


def _on_disk(path: SourcePath, what: str) -> Path:
    """``path`` where it is one of this machine.

    Raises:
        DataError: it is not.
    """
    if not isinstance(path, Path):
        raise DataError(f"{what} is read from a folder of this machine alone, found {path!s:.500}: download it")
    return path


# ------------------------------------------------------------------------------------------------ digests


def _digest(source: SourceSpec, data: str | None, *, is_copied: bool) -> str:
    if isinstance(source, ScenesSourceSpec):
        return "scenes"
    paths = locate(data)
    if not isinstance(paths[0], Path):
        digest = _remote_digest(paths)
    elif paths[0].is_dir():
        official = _official(source, paths)
        digest = _folder_digest(official[1] if official else paths[0])
    elif _is_table(source, paths):
        digest = _table_digest(paths[0], source)
    elif len(paths) == 1:
        digest = _file_digest(paths[0])
    else:
        lines = (f"{path.name}\0{_file_digest(path)}\n" for path in paths if isinstance(path, Path))
        digest = _digest_of(lines)
    if is_copied:
        return digest
    return _digest_of([digest, *(f"{uri_of(path)}\n" for path in paths)])  # an index of them is of this place alone


def _digest_of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _remote_digest(paths: Sequence[SourcePath]) -> str:
    """Of each file's name, size and tag: nothing is read."""
    if isinstance(paths[0], RemoteFolder):
        named = paths[0].files
    else:
        files = [path for path in paths if isinstance(path, RemoteFile)]
        named = tuple(zip(relative_names(files), files, strict=True))
    return _digest_of(["remote\n", *(f"{name}\0{file.size}\0{file.tag}\n" for name, file in named)])


def _folder_digest(folder: Path) -> str:
    def lines() -> Iterator[str]:
        for name, file in FolderFiles(folder).walk():
            status = os.stat(file)
            yield f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"

    return _digest_of(lines())


def _table_digest(path: Path, spec: FilesSourceSpec) -> str:
    table = PairTable(path, spec)

    def lines() -> Iterator[str]:
        yield _file_digest(path)
        for item in table.listing():
            if not item.problem:
                size, changed = table.status(item.name)
                yield f"{item.name}\0{size}\0{changed}\n"

    return _digest_of(lines())


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): check its path and permissions") from error
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ paths


def locate(data: str | None) -> list[SourcePath]:
    """What ``data`` names: a path, file://, s3:// or https://, of several files a pattern with braces.

    Raises:
        DataError: nothing is there, it is empty, or it may not be read.
    """
    if not data:
        raise DataError("this recipe needs images of yours: give a folder or an archive with --data")
    try:
        is_plain = not scheme_of(data)
        whole = Path(os.path.expanduser(data))
        names = [data] if "{" not in data or (is_plain and whole.exists()) else expand_braces(data)
        schemes = {scheme_of(name) for name in names}
        if len(schemes) > 1:
            raise DataError(f"the pattern {data:.200} names files of several kinds of places: use one")
        if schemes & {"s3", "https"}:
            paths: list[SourcePath] = list(find_remote(names))
        else:
            paths = [_local_path(name) for name in names]
        if empty := [path for path in paths if path.is_file() and not _size(path)]:  # or a file of the kernel
            raise DataError(f"{empty[0]!s:.500} is empty: give a folder, an archive, shards or a table")
    except OSError as error:  # a name that no file can have, or a folder that may not be entered
        raise DataError(f"cannot look at {data:.200} ({error.strerror}): check its path and permissions") from error
    return paths


def _local_path(name: str) -> Path:
    path = file_path(name) if scheme_of(name) else Path(os.path.expanduser(name))
    if not path.exists():
        raise DataError(f"there is nothing at {path!s:.500}: check the path")
    if not (path.is_file() or path.is_dir()):  # a pipe would be read for ever
        raise DataError(f"{path} is neither a file nor a folder: give a folder, an archive, shards or a table")
    return path


def _size(path: SourcePath) -> int:
    return 1 if isinstance(path, RemoteFolder) else path.stat().st_size


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


def _is_table(spec: FilesSourceSpec, paths: Sequence[SourcePath]) -> bool:
    """Whether the data are a table of pairs, by its name.

    Raises:
        DataError: the spec demands a table and the data are something else.
    """
    if spec.layout != "pairs":
        suffix = paths[0].suffix.lower()
        is_named = spec.layout == "auto" and len(paths) == 1 and suffix in SUFFIXES and paths[0].is_file()
        first = paths[0]
        has_images = suffix == ".parquet" and not isinstance(first, RemoteFolder) and image_columns(first) is not None
        return is_named and not has_images
    if len(paths) > 1 or paths[0].is_dir():
        raise DataError(f"expected one CSV, TSV or Parquet table of image paths and captions, but found {paths[0]}")
    return True


def _official(spec: FilesSourceSpec, paths: Sequence[SourcePath]) -> tuple[OfficialSet, Path] | None:
    """The official set that the data are, and its folder; None for any other data.

    Raises:
        DataError: the spec demands one and there is none, or none that can be read as it lies there.
    """
    if spec.layout == "official":
        return require_official(_on_disk(paths[0], "an official set"))
    first = paths[0]
    return find_official(first) if spec.layout == "auto" and isinstance(first, Path) and first.is_dir() else None
