"""What a run's manifests say of an encoder besides its measurements."""

from ssl_backdoor.specs import RunSpec
from ssl_backdoor.store import Manifest


def facts_of(run: RunSpec, clean: bool, model: Manifest, poison: Manifest, dataset: Manifest) -> dict[str, float]:
    """Numbers of one encoder that figures are drawn over and tables show.

    ``num_poisons`` (added pairs for each x' where targeted; 0 for a clean-trained encoder),
    ``poison_fraction_of_dataset``, ``num_train`` (clean training images), ``num_parameters`` (of the image tower,
    where the training counted them), ``patch_frac`` (side of the patch over that of the evaluated frame, where both
    are stated), ``seconds`` (wall-clock of the stage that made the encoder) and ``num_replicas`` (devices that it was
    trained on, where the training recorded them).
    """
    total = int(poison.summary["num_poisons"])
    facts = {
        "num_poisons": 0.0 if clean else float(run.attack.poisons_per_target(total)),
        "poison_fraction_of_dataset": 0.0 if clean else float(poison.summary["poison_fraction_of_dataset"]),
        "num_train": float(dataset.summary["num_train"]),
        "seconds": float(model.seconds),
    }
    for name in ("num_parameters", "num_replicas"):
        if name in model.summary:
            facts[name] = float(model.summary[name])
    if run.attack.trigger is not None:
        frame_px = run.evaluation.crop_px or run.dataset.frame_px or run.dataset.resident_px
        if (side_frac := run.attack.trigger.side_frac(frame_px)) is not None:
            facts["patch_frac"] = side_frac
    return facts
