"""The audit of a data set: which samples several filters find suspicious, and how many of them would be by chance.

One pass of features serves all filters. Where there is a trusted part, that each is compared with, a sample's p-value
is split-conformal and its q-value Benjamini and Hochberg's; else there are ranks alone.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ssl_backdoor.audit import subjects
from ssl_backdoor.audit.quarantine import TIMEOUT_S, Refusal
from ssl_backdoor.audit.statistics import benjamini_hochberg
from ssl_backdoor.audit.subjects import Subject
from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.inspection import Inspection, inspect_data
from ssl_backdoor.data.resident import Resident, load_resident
from ssl_backdoor.data.rows import captions_of, encoded_rows, rows_of
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.detection.clustered import ActivationClusteringSpec, SpectralSignaturesSpec
from ssl_backdoor.detection.duplicates import DuplicatesSpec, FileSignalsSpec
from ssl_backdoor.detection.image_text_similarity import ImageTextSimilaritySpec
from ssl_backdoor.detection.local_density import LocalDensitySpec
from ssl_backdoor.detection.measure import conformal_p_values
from ssl_backdoor.detection.pool import Pool
from ssl_backdoor.detection.ranking import RankingFilter
from ssl_backdoor.errors import CheckpointError, SpecError
from ssl_backdoor.identity import artifact_key, canonical
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec, Spec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.tables import FILTERED

NUM_SHOWN = 100
FEWEST_TRUSTED = 20
WITHOUT_ENCODER_PX = 64
STANDARD = "OWASP AISVS 1.0, chapter C6, as read in its repository at 05b702c"
REQUIREMENTS = {"6.3.2": "poisoning risk assessment of external data, by fingerprints and outliers: this page"}


class AskedData(NamedTuple):
    """An audit of the training images in ``data``."""

    data: str
    encoder: str = ""
    trusted: str = ""
    rate: float = 0.1
    """The false discovery rate at which samples are left out."""
    seed: int = 0
    said: Mapping[str, Any] = {}


class DataAudit(NamedTuple):
    """What was found."""

    facts: dict[str, Any]
    inspection: Inspection
    scores: pa.Table
    """A row a training image, the most suspicious first."""
    shown: NDArray[np.uint8]
    """The first ones, (N, H, W, 3)."""
    excluded: ArtifactRef | None


class _AuditedSpec(Spec):
    """What a list of samples to leave out was made by."""

    kind: str = "audit_data"
    rate: float
    filters: tuple[str, ...]
    seed: int


def audit_data(asked: AskedData, store: ArtifactStore, scratch: Path, on_progress: OnProgress = silent) -> DataAudit:
    """Judge the training images that ``asked`` names.

    Raises:
        SpecError: the encoder names nothing that can be used, or there are too few trusted images.
        DataError: the images cannot be read.
        CheckpointError: the encoder was refused.
    """
    began = time.monotonic()
    inspection = inspect_data(DatasetSpec(), asked.data, on_progress=on_progress)
    subject = _encoder(asked, store, scratch)
    side = subject.frame.size_px if subject else WITHOUT_ENCODER_PX
    if not side:
        raise SpecError(f"{asked.encoder} says no side of its images: give it with --image-size PX")
    refs = [_ingest(path, side, store, on_progress) for path in (asked.data, asked.trusted) if path]
    parts = [open_dataset(store, ref) for ref in refs]
    images = [load_resident(part, "train") for part in parts]
    num, num_trusted = len(images[0].keys), len(images[1].keys) if asked.trusted else 0
    if asked.trusted and num_trusted < FEWEST_TRUSTED:
        raise SpecError(f"expected {FEWEST_TRUSTED} trusted images or more, found {num_trusted}: bring more of them")
    pool, order = _pool(parts, images, asked.seed)
    folder = store.fetch(subject.ref) if subject else Path()
    scores, left_out = _judge(pool, order, folder, subject, asked.seed, on_progress)
    trusted = np.arange(num, num + num_trusted)
    p_values = {
        name: conformal_p_values(values, trusted, trusted)[:num] for name, values in scores.items() if num_trusted
    }
    combined = _combined(p_values, num)
    q_values = benjamini_hochberg(combined) if num_trusted else np.full(num, np.nan)
    table = _table(images[0], {name: values[:num] for name, values in scores.items()}, combined, q_values, parts[0])
    excluded = None
    if num_trusted:
        chosen = _AuditedSpec(rate=asked.rate, filters=tuple(scores), seed=asked.seed)
        excluded = _leave_out(table, parts[0], chosen, refs, subject, store, scratch)
    facts = {
        "audit": "data",
        "data": asked.data,
        "artifact": f"ingest/{refs[0].key}",
        "num_samples": num,
        "num_trusted": num_trusted,
        "filters": list(scores),
        "encoder": asked.encoder,
        "rate": asked.rate,
        "num_excluded": int((q_values <= asked.rate).sum()),
        "excluded": f"filter/{excluded.key}" if excluded else "",
        "left_out": left_out,
        "requirements": REQUIREMENTS,
        "standard": STANDARD,
        "seed": asked.seed,
        "cost": {"seconds": round(time.monotonic() - began, 1)},
    }
    row_of = {key: row for row, key in enumerate(images[0].keys)}
    first = [row_of[key] for key in table["key"][:NUM_SHOWN].to_pylist()]
    return DataAudit(facts, inspection, table, images[0].images[first].permute(0, 2, 3, 1).numpy(), excluded)


def _encoder(asked: AskedData, store: ArtifactStore, scratch: Path) -> Subject | None:
    if not asked.encoder:
        return None
    found = subjects.load(asked.encoder, asked.said, store, scratch / "encoder", TIMEOUT_S)
    if isinstance(found, Refusal):
        raise CheckpointError(f"the encoder was refused: {found.reason}")
    return found


def _ingest(path: str, side: int, store: ArtifactStore, on_progress: OnProgress) -> ArtifactRef:
    kept = DatasetSpec(resident_px=side, resident_filter="bilinear")  # files as they came: filters look at them too
    call = StageCall(IngestStage(dataset=kept), data=path, title="the images")
    return run_stage(call, store, on_progress=on_progress).ref


def _pool(parts: list[Dataset], images: list[Resident], seed: int) -> tuple[Pool, NDArray[np.int64]]:
    """All images in a random order, those of the second part trusted, and that order."""
    offsets = [0, len(images[0].keys)]
    total = sum(len(one.keys) for one in images)
    order = stream(seed, "audit data").permutation(total)

    def files() -> Iterator[tuple[int, bytes]]:
        for offset, part in zip(offsets, parts, strict=False):
            yield from ((offset + one.row, one.data) for one in encoded_rows(part, None, rows_of(part, "train")))

    captions = pa.chunked_array([one for part in parts for one in captions_of(part, "train").chunks], pa.string())
    vouched = np.flatnonzero(order >= offsets[1])
    pool = Pool(
        torch.cat([one.images for one in images]),
        torch.from_numpy(order),
        "cpu",
        None if captions.null_count else captions,
        files,
        torch.from_numpy(vouched),
        len(vouched),
    )
    return pool, order


def _judge(
    pool: Pool, order: NDArray[np.int64], folder: Path, subject: Subject | None, seed: int, on_progress: OnProgress
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Scores by filter in the order of the images, and a sentence on each filter that says nothing of these."""
    few = min(512, len(pool))
    filters: list[RankingFilter] = [DuplicatesSpec(), FileSignalsSpec()]
    left_out = [] if subject else ["filters that need features: give --encoder, best one trained on these images"]
    if subject:
        clusters = max(2, min(10, len(pool) // 20))
        filters += [
            LocalDensitySpec(k=min(16, few // 4), reference_size=few),
            ActivationClusteringSpec(num_clusters=clusters),
            SpectralSignaturesSpec(num_clusters=clusters),
        ]
        if subject.facts["has_text"] and pool.captions is not None:
            filters.append(ImageTextSimilaritySpec())
    scores = {}
    for number, one in enumerate(filters, 1):
        try:
            found = one.score(pool, folder, seed, silent).double().numpy()
        except SpecError as error:
            left_out.append(f"{one.label}: {error}")
            continue
        placed = np.empty_like(found)
        placed[order] = found
        scores[one.kind] = placed
        on_progress(Progress(number, len(filters), "filters", note=one.label))
    return scores, left_out


def _combined(p_values: Mapping[str, NDArray[np.float64]], num: int) -> NDArray[np.float64]:
    """Of each sample the smallest p-value times the number of filters (Bonferroni), which is Holm's first step."""
    if not p_values:
        return np.full(num, np.nan)
    stacked = np.stack([np.nan_to_num(one, nan=1.0) for one in p_values.values()])
    smallest: NDArray[np.float64] = np.minimum(stacked.min(0) * len(stacked), 1.0)
    return smallest


def _table(
    images: Resident,
    scores: Mapping[str, NDArray[np.float64]],
    p_values: NDArray[np.float64],
    q_values: NDArray[np.float64],
    dataset: Dataset,
) -> pa.Table:
    """Key, shard, class, caption, score and rank by each filter, p, q and the filter that ranks it highest."""
    num = len(images.keys)
    rows = rows_of(dataset, "train")
    ranks = {}
    for name, values in scores.items():
        filled = np.nan_to_num(values, nan=-np.inf)
        ranks[name] = num - np.searchsorted(np.sort(filled), filled, "left")  # how many score at least as high
    best = np.stack(list(ranks.values()))
    names = list(ranks)
    columns = {
        "key": pa.array(images.keys),
        "shard": rows["shard"].combine_chunks(),
        "class": pa.array([dataset.classes[label] if label >= 0 else "" for label in images.labels.tolist()]),
        "caption": rows["caption"].combine_chunks(),
        **{f"score_{name}": pa.array(values, from_pandas=True) for name, values in scores.items()},
        **{f"rank_{name}": pa.array(values) for name, values in ranks.items()},
        "p_value": pa.array(p_values, from_pandas=True),
        "q_value": pa.array(q_values, from_pandas=True),
        "reason": pa.array([names[at] for at in best.argmin(0).tolist()]),
    }
    order = np.lexsort((np.sort(best, 0).mean(0), best.min(0), np.nan_to_num(p_values, nan=1.0)))
    return pa.table(columns).take(pa.array(order))


def _leave_out(
    table: pa.Table,
    dataset: Dataset,
    chosen: _AuditedSpec,
    refs: list[ArtifactRef],
    subject: Subject | None,
    store: ArtifactStore,
    scratch: Path,
) -> ArtifactRef:
    """A ``filter`` artifact: what a training leaves out, as after any filter."""
    keys = rows_of(dataset, "train")["key"]
    by_key = dict(zip(table["key"].to_pylist(), zip(table["p_value"].to_pylist(), table["q_value"].to_pylist(),
                                                    strict=True), strict=True))  # fmt: skip
    found = [by_key[key] for key in keys.to_pylist()]
    p_values = [p for p, _ in found]
    goes = [q is not None and q <= chosen.rate for _, q in found]
    out = scratch / "excluded"
    out.mkdir()
    columns = [keys.combine_chunks(), pa.array([None if p is None else 1 - p for p in p_values], pa.float64()),
               pa.array(p_values, pa.float64()), pa.array(goes)]  # fmt: skip
    pq.write_table(pa.table(columns, schema=FILTERED), out / "filtered.parquet")
    inputs = {"dataset": refs[0].key, "trusted": refs[1].key} | ({"model": subject.ref.key} if subject else {})
    summary = {"num_samples": len(goes), "num_left_out": sum(goes), "num_references": 0}
    key = artifact_key("filter", chosen, inputs)
    return store.commit(
        "filter", key, out, spec=canonical(chosen), inputs=inputs, summary=summary, seconds=0.0, adopts=True
    )
