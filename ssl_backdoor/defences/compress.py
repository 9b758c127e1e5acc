"""CompRess (Koohpayegani et al. 2020), https://arxiv.org/abs/2010.14713, as the defence of Saha et al. 2022.

The suspect is the teacher: frozen, in eval mode. A fresh student of the same architecture learns, on trusted images
alone, to rank a queue of earlier images as the teacher ranks them; what only triggered images excite in the teacher
is not passed on. Read beside https://github.com/UMBCvision/CompRess: train_student.py (cf33bab, two queues),
train_student_one_queue.py (c5e57ed) and nn/compress_loss.py (b9ec6ea).

Shapes: b images of this replica, B images of all replicas, Ds and Dt features of student and teacher, K queue.
"""

from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.defences.trusted import open_trusted
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import ResNet, initialised
from ssl_backdoor.methods.base import Alone, Batch, LossOutput, Replicas, SSLMethod, views_of
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.clip_towers import ImageTower
from ssl_backdoor.methods.losses import similarity_divergence
from ssl_backdoor.methods.parts import EMACopy, Queue
from ssl_backdoor.methods.vit import ViT
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.seeds import sub_seed, torch_generator
from ssl_backdoor.specs import CompressSpec, Resources
from ssl_backdoor.train.checkpoint import Checkpoints, load_backbone
from ssl_backdoor.train.pretrain import check_workers, train_backbone
from ssl_backdoor.train.training_set import load_training_set


@final
class CompRess(SSLMethod):
    """Frozen teacher, fresh student, and the queues that both are compared on.

    With two queues the student's is filled by a slow copy of the student (BatchNorm in training mode). With one, the
    teacher's serves both, and a linear layer, dropped at the end, takes the student's features to the teacher's space.

    NOTE: upstream keeps the incomplete last batch of an epoch; here it is dropped, as in every fit of this project.
    """

    num_views = 1

    def __init__(
        self,
        spec: CompressSpec,
        teacher: ResNet | ViT,
        student: ResNet | ViT,
        seed: int,
        replicas: Replicas | None = None,
    ):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or Alone()
        # In a tuple the teacher is no part of this module: not optimised, not saved, never in training mode.
        self.teacher = (teacher.eval().requires_grad_(False),)
        self.backbone = student
        self.teacher_queue = Queue(_first_rows(spec.queue_size, teacher.feature_dim, seed, "teacher_queue"))
        self.new_rows: tuple[Tensor, ...] = ()
        self.mapper: nn.Module = nn.Identity()
        self.student_key: EMACopy | None = None
        self.student_queue: Queue | None = None
        if spec.num_queues == 1:
            dims = student.feature_dim, teacher.feature_dim
            self.mapper = initialised(lambda: nn.Linear(*dims), torch_generator(seed, "mapper"))
        else:
            self.student_key = EMACopy(student)
            self.student_queue = Queue(_first_rows(spec.queue_size, student.feature_dim, seed, "student_queue"))

    @property
    def is_replayable(self) -> bool:
        """Yes."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """KL from the teacher's to the student's similarities with the queues as they were before this batch."""
        (images,) = views_of(batch, self.num_views)
        with torch.no_grad():
            teacher = F.normalize(self.teacher[0](images).float(), dim=1)  # (b, Dt)
        student = F.normalize(self.mapper(self.backbone(images)).float(), dim=1)  # (b, Ds)
        self.new_rows = (self.replicas.gather(teacher),)
        student_queue = self.teacher_queue
        if self.student_key is not None and self.student_queue is not None:
            key = F.normalize(self.student_key(images).float(), dim=1)
            self.new_rows = (*self.new_rows, self.replicas.gather(key))
            student_queue = self.student_queue
        divergence = similarity_divergence(
            student, teacher, student_queue.rows, self.teacher_queue.rows, self.spec.temperature
        )
        return LossOutput(divergence, {})

    def after_step(self, progress: float) -> None:
        """The batch enters the queues; the slow copy follows the student."""
        queues = [queue for queue in (self.teacher_queue, self.student_queue) if queue is not None]
        for queue, rows in zip(queues, self.new_rows, strict=False):
            queue.push(rows)
        if self.student_key is not None:
            self.student_key.follow((self.backbone,), self.spec.ema_decay)


def _first_rows(size: int, dim: int, seed: int, role: str) -> Tensor:
    """Uniform in +-1 / sqrt(dim / 3), (size, dim): about unit length, not normalised (compress_loss.py, line 41)."""
    bound = (dim / 3) ** -0.5
    return torch.empty(size, dim).uniform_(-bound, bound, generator=torch_generator(seed, role))


def defend(
    spec: CompressSpec,
    dataset: Dataset,
    suspect: Path,
    out: Path,
    seed: int,
    resources: Resources,
    checkpoints: Checkpoints,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Distil the suspect into a fresh student on the trusted part of ``dataset``, the clean base images.

    Args:
        spec: The defence.
        dataset: The ingested images; there is no overlay here.
        suspect: Folder with ``backbone.safetensors`` and ``backbone.json``; read, never written.
        out: Existing folder for the files of ``pretrain`` and ``trusted.parquet``.
        seed: Names every random stream.
        resources: As in ``pretrain``; so are ``checkpoints`` and ``on_progress``.
        checkpoints: Where the state of an unfinished distillation is kept.
        on_progress: Told about once a second.

    Returns:
        What ``pretrain`` returns, and ``num_trusted``.

    Raises:
        CheckpointError: The suspect cannot be read.
        SpecError: There are fewer trusted images than one batch, or the suspect is a CLIP model; this and the other
            errors also as ``pretrain``.
    """
    check_workers(spec.fit, resources)
    teacher = load_backbone(suspect)
    if isinstance(teacher, ImageTower):
        raise SpecError(
            "compress would part the image tower of a CLIP model from its captions, and zero-shot classification "
            "would be lost; set defence.kind to distil_image_tower"
        )
    trusted = open_trusted(dataset, spec.trusted_fraction, seed, spec.fit.batch_size)
    data = load_training_set(trusted.dataset, None, resources, on_progress)

    def build(replicas: Replicas, device: torch.device) -> SSLMethod:
        student = build_backbone(teacher.spec, spec.fit.bn_groups // replicas.count, fit_seed, "student")
        on_device = teacher.to(device).to(memory_format=torch.channels_last)
        return CompRess(spec, on_device, student, fit_seed, replicas)

    fit_seed = sub_seed(seed, "compress")
    tables = {"trusted.parquet": trusted.table}
    summary = train_backbone(build, data, spec.fit, out, fit_seed, resources, checkpoints, on_progress, tables)
    return {**summary, "num_trusted": trusted.table.num_rows}
