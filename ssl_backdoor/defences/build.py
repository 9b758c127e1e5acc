"""Defence specs to work. The union that types a spec is the list of defences: there is no registry."""

from pathlib import Path
from typing import Any, assert_never

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.defences import cleanclip, compress, distil_image_tower
from ssl_backdoor.errors import SpecError
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.specs import CleanCLIPSpec, CompressSpec, DefenceSpec, DistilImageTowerSpec, NoDefenceSpec, Resources
from ssl_backdoor.train.checkpoint import Checkpoints


def defend(
    spec: DefenceSpec,
    dataset: Dataset,
    suspect: Path,
    out: Path,
    seed: int,
    resources: Resources,
    checkpoints: Checkpoints,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Run the defence of ``spec``: its module names arguments, files and errors.

    Raises:
        SpecError: ``spec`` is NoDefenceSpec; also what the defence raises.
    """
    match spec:
        case CompressSpec():
            return compress.defend(spec, dataset, suspect, out, seed, resources, checkpoints, on_progress)
        case DistilImageTowerSpec():
            return distil_image_tower.defend(spec, dataset, suspect, out, seed, resources, checkpoints, on_progress)
        case CleanCLIPSpec():
            return cleanclip.defend(spec, dataset, suspect, out, seed, resources, checkpoints, on_progress)
        case NoDefenceSpec():
            raise SpecError(
                "the spec names no defence, so there is nothing to run; set defence.kind to compress, or to "
                "distil_image_tower or cleanclip for a CLIP model"
            )
        case _:
            assert_never(spec)
