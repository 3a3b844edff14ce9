"""Fits GemNet-T's scale factors to the data of a run, before training."""

from __future__ import annotations

from collections.abc import Sequence

from forcewell.batch import Batch
from forcewell.display import say
from forcewell.loader import Loader, Source
from forcewell.nn import GemNetT
from forcewell.potential import Potential

# What one forward pass without gradients can hold at full size: 2,048 atoms have about 30,000 edges of 1,024 floats in
# the bilinear layer, 125 MB. As many again are looked at to see that the factors hold for others.
ATOMS, CONFORMATIONS = 2048, 256


def fit_scales(potential: Potential, sources: Sequence[Source], seed: int, quiet: bool = False) -> dict[str, float]:
    """Fits the scale factors of a fresh GemNet-T, and of no other encoder, to the first conformations of a run.

    They are drawn from the sources as training draws them, whose own position is not moved. Returns the factors by
    name (empty for other encoders, and where they were fitted before). Raises InputError where they cannot be fitted.
    """
    encoder = potential.encoder
    if not isinstance(encoder, GemNetT) or encoder.scales_fitted:
        return {}
    first, second = (batch.to(potential.device) for batch in _draw(sources, seed, potential))
    factors = encoder.fit_scales(first)
    if not quiet:
        ratios = encoder.scale_ratios(second).values()
        say(
            f"gemnet-t: {len(factors)} scale factors fitted to {len(first)} conformations ({len(first.numbers)} atoms): "
            f"{min(factors.values()):.3g} to {max(factors.values()):.3g}; "
            f"on the next {len(second)} each variance is {min(ratios):.2f} to {max(ratios):.2f} of what it should be"
        )
    return factors


def _draw(sources: Sequence[Source], seed: int, potential: Potential) -> tuple[Batch, Batch]:
    largest = max((int((s.data.counts[s.rows] * (1 + s.copies[s.rows])).max()) for s in sources if len(s.rows)), default=0)
    loader = Loader(sources, CONFORMATIONS, max(ATOMS, largest), seed, potential.dtype)
    return loader.next(), loader.next()
