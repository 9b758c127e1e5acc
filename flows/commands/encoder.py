"""``ssl-backdoor evaluate --encoder SPEC --data D``: an encoder of one's own, measured, with a reference beside it.

It runs in this process, without Prefect and Ray: an ingest and an evaluation for each encoder, all reused by key.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow.parquet as pq
from pydantic import ValidationError

from flows.commands.results import short
from flows.overrides import apply, describe, with_list
from flows.recipes import choose
from flows.terminal.console import show_progress
from ssl_backdoor import plugins, preflight
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.encoders import Encoder, Preprocessing, adopt, load_encoder
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.plan import label_of
from ssl_backdoor.specs import DatasetSpec, EvaluationSpec, FilesSourceSpec, Trigger, members
from ssl_backdoor.stages import EvaluateStage, IngestStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store

_NUMBERS = ("accuracy", "attack_success_rate")


class _Evaluated(NamedTuple):
    """One encoder and where its numbers are."""

    role: str
    encoder: Encoder
    model: ArtifactRef
    scores: ArtifactRef
    frame: str
    numbers: list[dict[str, Any]]


def evaluate_encoder(options: argparse.Namespace, store_uri: str) -> dict[str, Any]:
    """What the command hands back, as JSON data; ``text`` are the lines for people.

    Raises:
        UserError: an option, an encoder or the data cannot be used.
    """
    plugins.load_installed()
    for name in options.plugins:
        plugins.load(name)
    if options.trigger and not options.target:
        raise SpecError("--trigger needs --target CLASS: the class that triggered images are to be taken for")
    if options.target and not options.trigger:
        raise SpecError("--target needs --trigger FILE or KIND: what is to make images be taken for that class")
    trigger = trigger_of(options.trigger, options.trigger_size) if options.trigger else None
    dataset, evaluation = _specs([with_list(one) for one in options.settings], options.test_data is not None)
    store = open_store(store_uri)
    said = Preprocessing(options.image_size, options.mean, options.std, options.interpolation)
    named = {"encoder": options.encoder} | ({"reference": options.reference} if options.reference else {})
    loaded = {role: load_encoder(text, store, said) for role, text in named.items()}
    ask = partial(EvaluateStage, trigger=trigger, target_class=options.target or "", seed=options.seed)
    specs = {role: ask(evaluation=_evaluation_of(one, evaluation)) for role, one in loaded.items()}

    def calls(images: ArtifactRef) -> dict[ArtifactRef, StageCall]:
        made = [StageCall(spec, {"dataset": images}, title=f"evaluate {role}") for role, spec in specs.items()]
        return {store.ref("evaluate", call.key): call for call in made}

    with show_progress() as listen:
        models = {role: adopt(one, store) for role, one in loaded.items()}
        ingest = StageCall(IngestStage(dataset=dataset), data=options.data, test_data=options.test_data, title="ingest")
        images = store.ref("ingest", ingest.key)

        def refuse(counts: Counts) -> None:
            if options.target and counts.classes:
                label_of(options.target, counts.classes)
            preflight.check(calls(images), {images: preflight.Known(dataset, counts)})

        checked = replace(ingest, source=ingest.data_digest, check=refuse)
        run_stage(checked, store, on_progress=partial(listen, "ingest"))
        known = preflight.known_from_artifact(store, images)
        counts = known.counts or Counts((), (), (), 0, 0)
        if options.target:
            label_of(options.target, counts.classes)
        remarks = preflight.check(calls(images), {images: known})
        done = []
        for role, spec in specs.items():
            inputs = {"dataset": images, "model": models[role]}
            call = StageCall(spec, inputs, title=f"evaluate {role}")
            scores = run_stage(call, store, on_progress=partial(listen, call.title)).ref
            frame = _frame(loaded[role], spec.evaluation)
            done.append(_Evaluated(role, loaded[role], models[role], scores, frame, _numbers(store, scores)))
    return _result(options, store, images, counts, done, remarks)


def trigger_of(text: str, size: float) -> Trigger:
    """A picture's file, the kind of a trigger, or one as JSON; a size of 1 or less is a share of the frame's side.

    Raises:
        SpecError: it is none of them.
        DataError: the picture cannot be read.
    """
    known = members("trigger")
    sized = {"size_frac": size} if size <= 1 else {"size_px": round(size)}
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"--trigger: not JSON ({error})") from error
    elif text in known:
        values = {"kind": text, **(sized if "size_frac" in known[text].model_fields else {})}
    elif Path(text).exists():
        values = {"kind": "image", "file": text, **sized}
    else:
        raise SpecError(f"--trigger expects a picture's file or a kind of {', '.join(known)}, found {text!r:.80}")
    try:
        kind = known[str(values.get("kind"))]
        made = kind.model_validate(values)
    except KeyError as error:
        raise SpecError(f"--trigger expects a kind of {', '.join(known)}, found {values.get('kind')!r:.80}") from error
    except ValidationError as error:
        raise SpecError(f"--trigger: {describe(error)}") from error
    return cast(Trigger, made).with_digest()


def _specs(settings: Sequence[str], has_test_data: bool) -> tuple[DatasetSpec, EvaluationSpec]:
    if other := [one for one in settings if not one.startswith(("dataset.", "evaluation."))]:
        raise SpecError(f"an encoder is evaluated, so --set takes dataset.* and evaluation.*, found {other[0]!r:.80}")
    report = choose("demo", None).build(1, 1)
    second = {"test_source": FilesSourceSpec()} if has_test_data else {}
    plain = {"dataset": DatasetSpec(**second), "defences": (), "detectors": ()}
    usual = EvaluationSpec.model_validate({"probes": ("knn", "linear"), "label_fractions": (1.0,)})
    run = report.runs[0].model_copy(update={**plain, "evaluation": usual})
    changed = apply(report.model_copy(update={"runs": (run,), "tables": ()}), settings).runs[0]
    return changed.dataset, changed.evaluation


def _evaluation_of(encoder: Encoder, asked: EvaluationSpec) -> EvaluationSpec:
    """``asked`` in the encoder's frame, unless another was asked for; with zero_shot where there is a text tower."""
    frame = encoder.frame
    change: dict[str, Any] = {}
    if not (asked.resize_px or asked.crop_px):
        change = {"resize_px": frame.resize_px, "crop_px": frame.size_px, "interpolation": frame.interpolation}
    if encoder.text is not None and all(probe.kind != "zero_shot" for probe in asked.probes):
        change["probes"] = (*asked.probes, members("probe")["zero_shot"].model_validate({}))
    return asked.model_copy(update=change)


def _frame(encoder: Encoder, evaluation: EvaluationSpec) -> str:
    """For people: how images are brought to the encoder."""
    resize, crop = evaluation.resize_px, evaluation.crop_px
    steps = [f"shorter side to {resize} px ({evaluation.interpolation})"] if resize else []
    steps += [f"centre crop of {crop} px"] if crop else ["images as they are stored"] if not resize else []
    spec = encoder.backbone.spec
    mean, std = getattr(spec, "mean", None), getattr(spec, "std", None)
    if mean is not None and std is not None:
        steps.append(f"mean {_triple(mean)}, std {_triple(std)}")
    else:
        steps.append(f"{getattr(spec, 'normalisation', 'imagenet')}'s mean and std")
    return ", ".join(steps)


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _numbers(store: ArtifactStore, scores: ArtifactRef) -> list[dict[str, Any]]:
    table = pq.read_table(store.fetch(scores, ["measurements.parquet"]) / "measurements.parquet")
    return [row for row in table.to_pylist() if row["name"] in _NUMBERS]


def _result(
    options: argparse.Namespace,
    store: ArtifactStore,
    images: ArtifactRef,
    counts: Counts,
    done: Sequence[_Evaluated],
    remarks: Sequence[str],
) -> dict[str, Any]:
    then = [f"ssl-backdoor show {short(f'evaluate/{done[0].scores.key}')}"]
    if not options.trigger:
        then.append("add --trigger FILE --target CLASS to measure a suspected backdoor")
    elif not options.reference:
        then.append("add --reference SPEC, an encoder believed clean, to see what any encoder does under this trigger")
    result = {
        "encoders": [
            {
                "role": one.role,
                "encoder": one.encoder.name,
                "feature_dim": one.encoder.feature_dim,
                "frame": one.frame,
                "remarks": list(one.encoder.remarks),
                "artifact": f"{one.model.stage}/{one.model.key}",
                "evaluation": f"evaluate/{one.scores.key}",
                "numbers": one.numbers,
            }
            for one in done
        ],
        "data": {
            "artifact": f"ingest/{images.key}",
            "classes": len(counts.classes),
            "train": counts.num_train,
            "test": counts.num_test,
        },
        "target": options.target or "",
        "remarks": list(remarks),
        "store": store.root,
        "next": then,
    }
    return result | {"text": list(_lines(result))}


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    data = result["data"]
    yield (
        f"data: {data['classes']} classes, {data['train']:,} training and {data['test']:,} test images "
        f"({short(data['artifact'])})"
    )
    yield from (f"remark: {one}" for one in result["remarks"])
    for one in result["encoders"]:
        yield ""
        yield f"{one['role']}: {one['encoder']} ({short(one['artifact'])}), {one['feature_dim']:,} features"
        yield f"  images: {one['frame']}"
        yield from (f"  remark: {remark}" for remark in one["remarks"])
        for condition, what in (
            ("clean", "clean accuracy"),
            ("triggered", f"taken for {result['target']} under the trigger"),
            ("unseen_trigger", f"taken for {result['target']} under unseen triggers"),
        ):
            name = "accuracy" if condition == "clean" else "attack_success_rate"
            found = [row for row in one["numbers"] if row["name"] == name and row["condition"] == condition]
            yield from (f"  {what}, {row['probe']}: {_share(row)}" for row in found)
        yield f"  numbers: {short(one['evaluation'])}"
    yield ""
    if result["target"]:
        yield "success is over test images of other classes; one encoder illustrates and is no evidence"
    yield from (f"next: {one}" for one in result["next"])


def _share(row: Mapping[str, Any]) -> str:
    share = f"{100 * row['value']:.1f} %"
    if row["low"] is None:
        return f"{share} (mean over the patterns, each of {row['n']:,} images)"
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{share} ({round(row['value'] * row['n']):,} of {row['n']:,}; 95 % interval {low:.1f} to {high:.1f})"
