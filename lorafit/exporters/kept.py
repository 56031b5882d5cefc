"""How much of what was learned an export keeps, from losses on the same texts, with an interval.

Letters: S texts, R resamples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorafit.exporters.certificate import Losses

Float64 = NDArray[np.float64]
RESAMPLES, SEED = 4000, 42
ENDS = (0.025, 0.975)  # of the 95% interval
LEAST_TEXTS = 4


def losses(base: Sequence[Float64], live: Sequence[Float64], export: Sequence[Float64]) -> Losses:
    """Return the losses of three models from the losses in nats of each target token, text by text.

    Texts are drawn with replacement, each with all three models, because the tokens of a text are correlated (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Percentile intervals. Of fewer than LEAST_TEXTS texts,
    nothing is said.
    """
    counts_S = np.array([len(one) for one in base], np.float64)
    sums_MS = np.array([[one.sum() for one in model] for model in (base, live, export)])
    base_loss, live_loss, export_loss = (float(one) for one in sums_MS.sum(1) / counts_S.sum())
    drawn_RS = np.random.default_rng(SEED).integers(0, len(counts_S), (RESAMPLES, len(counts_S)))
    means_MR = sums_MS[:, drawn_RS].sum(-1) / counts_S[drawn_RS].sum(-1)
    gains_R = means_MR[0] - means_MR[1]
    low, high = (float(one) for one in np.quantile(gains_R, ENDS))
    gain, kept = base_loss - live_loss, None
    if low > 0 and len(counts_S) >= LEAST_TEXTS:
        least, most = (float(one) for one in np.quantile((means_MR[0] - means_MR[2]) / gains_R, ENDS))
        kept = ((base_loss - export_loss) / gain, least, most)
    return Losses(int(counts_S.sum()), base_loss, live_loss, export_loss, (gain, low, high), kept)
