"""How well units tell phones apart: purities and the mutual information, from a joint table of
counts (Hsu et al. 2021).
"""

from __future__ import annotations

import numpy as np

from raysere.studies.units.distances import entropy, normalised


def unit_quality(joint: np.ndarray) -> dict[str, float]:
    """Measures of a table of counts (phones, units); NaN where it is empty.

    ``phone_purity``: share of frames whose phone is the most frequent one of their unit.
    ``cluster_purity``: share whose unit is the most frequent one of their phone. ``pnmi``: I(phone;
    unit) / H(phone), NaN where there is one phone only. ``perplexity``: exp of the entropy of the
    units. ``frames``: the count.
    """
    joint = np.asarray(joint, dtype=np.float64)
    total = joint.sum()
    nothing = float("nan")
    if total == 0:
        return {"phone_purity": nothing, "cluster_purity": nothing, "pnmi": nothing, "perplexity": nothing, "frames": 0.0}
    p = joint / total
    phones, units = entropy(p.sum(1)), entropy(p.sum(0))
    shared = phones + units - entropy(p.ravel())
    return {
        "phone_purity": float(p.max(0).sum()),
        "cluster_purity": float(p.max(1).sum()),
        "pnmi": float(shared / phones) if phones > 0 else nothing,
        "perplexity": float(np.exp(entropy(normalised(joint.sum(0))))),
        "frames": float(total),
    }
