"""Triggers of another's style that no encoder was trained on: what any such patch does, to set its own effect against.

They are drawn anew for each pair and seed, so that what holds over pairs holds over patterns too.
"""

import numpy as np

from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import canonical_json
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import Trigger

_COMPARED_PX = 64
_ATTEMPTS = 100


def unseen_triggers(trigger: Trigger, count: int, seed: int, source: bytes | None = None) -> tuple[Trigger, ...]:
    """``count`` triggers in the style of ``trigger``, none with its pixels; none at all where it has no other patterns.

    Pure: the same for every encoder that is tested under ``trigger`` and ``seed``. ``source`` as ``Trigger.apply``.

    Raises:
        SpecError: a hundred draws gave only the trigger itself.
    """
    own, name, found = trigger.shown(_COMPARED_PX, source), canonical_json(trigger), list[Trigger]()
    for number in range(count):
        for attempt in range(_ATTEMPTS):
            drawn = trigger.unseen(sub_seed(seed, "unseen_trigger", name, number, attempt))
            if drawn is None:
                return ()
            if not np.array_equal(drawn.shown(_COMPARED_PX, source), own):
                found.append(drawn)
                break
        else:
            raise SpecError(
                f"{trigger.label}: {_ATTEMPTS} draws of another pattern of its style gave only itself; "
                "set evaluation.unseen_triggers=0, or give the trigger more cells"
            )
    return tuple(found)
