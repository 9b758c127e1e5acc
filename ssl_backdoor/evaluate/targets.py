"""Target images x' as each probe sees them: the class it gives them, and the rank of the attacker's class y'."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ssl_backdoor.evaluate.features import Features
from ssl_backdoor.evaluate.probes import NamedProbe
from ssl_backdoor.tables import TARGETS


def score_targets(targets: pa.Table, test: Features, named: Iterable[NamedProbe], device: str) -> pa.Table:
    """One row of TARGETS for each row of ``targets`` (key, label, target_label) and probe; x' is seen unaltered."""
    rows = pc.index_in(targets["key"], value_set=test.keys.combine_chunks())
    features = test.values["clean"][torch.from_numpy(rows.to_numpy().astype("int64"))].to(device)
    wanted = torch.from_numpy(targets["target_label"].to_numpy().astype("int64")).to(device)
    tables = [TARGETS.empty_table()]
    for probe in named:
        scores = probe.scores(features)
        predicted, rank = (
            pa.array(part.cpu().numpy(), pa.int32()) for part in (scores.argmax(1), ranks(scores, wanted))
        )
        name = pa.repeat(probe.name, len(rows))
        columns = [targets["key"], targets["label"], targets["target_label"], name, predicted, rank]
        tables.append(pa.table(columns, schema=TARGETS))
    return pa.concat_tables(tables).combine_chunks()


def ranks(scores: Tensor, wanted: Tensor) -> Tensor:
    """Rank, int64 (N,), of class ``wanted`` (N,) by ``scores`` (N, C); 1 is first, of equal scores the lower label.

    Rank 1 is thus the class that argmax predicts.
    """
    own = scores.gather(1, wanted[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < wanted[:, None]
    return 1 + ((scores > own) | ((scores == own) & before)).sum(dim=1)
