"""Image-caption pairs on their way to a CLIP step, beside open_clip's own loader.

    python -m tests.benchmarks.bench_pairs [--quick] [--out FOLDER]

Drawn JPEGs with captions from templates, on the local disk, as shards of each side's making. Every contender delivers
each pair once (open_clip's repeats a few to fill its last batches), in random order, in batches of 64 of float images
(cropped to 0.9 to 1.0 of their area, resized bicubically, normalised) and tokens, in a process that has two cores. Ours
is what a training of a set too large for memory does: images are read by offset and decoded in every epoch, captions
are tokenised once, which counts here; "ours, held" is one whose decoded images fit in memory, from its second epoch
on. open_clip's is its ``get_wds_dataset`` with its training transform and tokenizer, with two workers and with none;
starting them counts.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import webdataset

from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.data.rows import captions_of
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.methods.base import SingleProcess
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, TemplateCaptionsSpec, ViewsSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, LocalStore
from ssl_backdoor.train.batches import make_batches
from ssl_backdoor.train.training_set import tokenize_captions
from tests.benchmarks.bench_ingest import drawn, write_tar
from tests.benchmarks.harness import Comparison, Options, alone, main, paired

CASES = ((32, 32, 20_000), (250, 224, 3_000))
"""Side of the files, side that is delivered, number of pairs."""
BATCH, SHARDS, THREADS = 64, 10, 2
CONTEXT = 77


def views_of(side_px: int) -> ViewsSpec:
    """open_clip's training transform."""
    plain = {"flip_p": 0.0, "jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0}
    return ViewsSpec(size_px=side_px, crop_scale=(0.9, 1.0), interpolation="bicubic", **plain)


def by_us(folder: str, ref: ArtifactRef, side_px: int, is_held: bool) -> float:
    """Pairs per second."""
    from open_clip.tokenizer import SimpleTokenizer

    dataset = open_dataset(LocalStore(Path(folder) / "store"), ref)
    held = load_resident(dataset, "train").images if is_held else None
    tokenize = SimpleTokenizer(context_length=CONTEXT)
    began_s = time.perf_counter()
    images = Streamed(dataset, "train") if held is None else held
    captions = tokenize_captions(captions_of(dataset, "train", None), tokenize)
    batches = make_batches(images, captions, BATCH, [views_of(side_px)], 0, SingleProcess(), torch.device("cpu"))
    steps = len(images) // BATCH
    for step in range(steps):
        batches(step)
    return steps * BATCH / (time.perf_counter() - began_s)


def by_open_clip(folder: str, count: int, side_px: int, workers: int) -> float:
    """Pairs per second."""
    from open_clip import image_transform
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip_train import data

    # NOTE: open_clip 3.3's own reader of tar files stumbles over what webdataset 1 adds at a file's end; this is the
    # one that a comment of it names.
    data.tarfile_to_samples_nothrow = webdataset.tarfile_to_samples(handler=data.log_and_continue)

    multiprocessing.set_start_method("fork", force=True)  # the loader's own on Linux; this process was spawned
    given = SimpleNamespace(
        train_data=f"{folder}/open_clip/{{000000..{SHARDS - 1:06d}}}.tar",
        train_num_samples=count,
        train_data_upsampling_factors=None,
        batch_size=BATCH,
        workers=workers,
        world_size=1,
        seed=0,
    )
    tokenize = SimpleTokenizer(context_length=CONTEXT)
    began_s = time.perf_counter()
    loader = data.get_wds_dataset(given, image_transform(side_px, is_train=True), is_train=True, tokenizer=tokenize)
    done = sum(len(images) for images, _ in loader.dataloader)
    return done / (time.perf_counter() - began_s)


def measured(work: Callable[..., float], *given: object) -> float:
    """In a process that may use two cores."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-THREADS:]))
    torch.set_num_threads(THREADS)
    return work(*given)


def prepared(folder: str, file_px: int, side_px: int, count: int) -> ArtifactRef:
    """The same pairs, ingested by us and written as open_clip reads them."""
    archive = Path(folder) / "images.tar"
    write_tar(archive, drawn(count, file_px))
    spec = DatasetSpec(
        source=FilesSourceSpec(),
        captions=TemplateCaptionsSpec(),
        frame_px=side_px,
        samples_per_shard=count // SHARDS,
    )
    call = StageCall(IngestStage(dataset=spec), source=source_digest(spec, str(archive)), data=str(archive))
    store = LocalStore(Path(folder) / "store")
    ref = run_stage(call, store).ref
    dataset = open_dataset(store, ref)
    (Path(folder) / "open_clip").mkdir()
    with webdataset.ShardWriter(f"{folder}/open_clip/%06d.tar", maxcount=count // SHARDS, verbose=0) as writer:
        for row, data in zip(dataset.samples.to_pylist(), dataset.read(dataset.samples), strict=True):
            writer.write({"__key__": row["key"], "jpg": data, "txt": row["caption"].splitlines()[0]})
    return ref


def run(options: Options) -> Iterator[Comparison]:
    for file_px, side_px, full in CASES:
        count = 200 if options.quick else full
        with tempfile.TemporaryDirectory() as folder:
            ref = prepared(folder, file_px, side_px, count)
            contenders = {
                "ours": partial(alone, measured, by_us, folder, ref, side_px, False),
                "ours, held": partial(alone, measured, by_us, folder, ref, side_px, True),
                "open_clip's loader": partial(alone, measured, by_open_clip, folder, count, side_px, 0),
                "open_clip's, two workers": partial(alone, measured, by_open_clip, folder, count, side_px, 2),
            }
            case = f"{count:,} pairs, JPEGs of {file_px} px to {side_px} px"
            yield Comparison(case, "pairs/s on two cores", paired(contenders, options.repetitions))


if __name__ == "__main__":
    main(run, __doc__)
