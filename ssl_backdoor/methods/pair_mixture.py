"""Which image-text pairs are safe by their cosine: the mixture of two normal distributions of SafeCLIP.

Yang et al. 2024, https://arxiv.org/abs/2310.05862. A pair is safe if it belongs to the distribution of higher mean with
a probability of at least ``safe_p``.

NOTE: on one hump the mixture splits arbitrarily: where the two means differ by less than ``least_gap_sd`` of the
cosines' standard deviation there is no cut, and a remark is logged.
NOTE: beyond the two means the probability may turn round, where one distribution is wider; the cut is between them, so
that no pair is safe for being less similar than one that is not.
"""

import numpy as np
from numpy.typing import NDArray

from ssl_backdoor.events import log_event


def least_safe(cosines: NDArray[np.float64], safe_p: float, least_gap_sd: float, seed: int) -> float:
    """From which of ``cosines`` (N,) on pairs are safe; minus infinity where there is one hump."""
    from sklearn.mixture import GaussianMixture

    spread = float(cosines.std())
    if len(cosines) < 2 or spread < 1e-6:
        return -np.inf
    mixture = GaussianMixture(2, random_state=seed % 2**32, n_init=3).fit(cosines[:, None])
    low, high = sorted(range(2), key=lambda one: float(mixture.means_[one, 0]))
    first, last = (float(mixture.means_[one, 0]) for one in (low, high))
    gap_sd = (last - first) / spread
    if gap_sd < least_gap_sd:
        log_event(
            "remark",
            f"cosines of pairs: the two means differ by {gap_sd:.2f} standard deviations, less than "
            f"{least_gap_sd:g}: there is one hump, and no cut",
            gap_sd=gap_sd,
        )
        return -np.inf
    between = np.sort(cosines[(cosines >= first) & (cosines <= last)])
    safe = between[mixture.predict_proba(between[:, None])[:, high] >= safe_p] if len(between) else between
    return float(safe[0]) if len(safe) else last
