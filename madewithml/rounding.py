"""Rounding weights to int8 so that products stay what they were.

    weights, what they are multiplied with -> `smoothing` -> `rounded` -> int8 weights and their scales

Pure functions of arrays. Rounded one by one, the weights of a small encoder change its probabilities by up to 0.04; so
does rounding the activations, of which a few channels are many times larger than the rest. Scales for groups of
neighbouring channels help, and two published methods bring it down to a third of that:

- SmoothQuant (Xiao et al., arXiv 2211.10438) moves scale from large input channels into their weights.
- GPTQ (Frantar et al., arXiv 2210.17323) rounds one input channel after the other, and lets those that are still to
  come make good for the error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

LARGEST = 127  # int8, symmetric
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
DAMPING = 0.01  # of the mean of the diagonal, as in GPTQ
BLOCK = 128  # channels after which the rest of the weights is brought up to date
ALMOST_ZERO = 1e-6


def smoothing(weights: Array, activations: Array, largest: Array, *, group: int) -> Array:
    """Divisors for the input channels, by which the weights are multiplied instead: SmoothQuant's equation 4.

    s = max|x| ^ a / max|w| ^ (1 - a). The share a is the one with the least error on the activations, both sides
    rounded; no smoothing at all is one of the choices.

    Args:
        weights: [n, k].
        activations: Some of what they are multiplied with, [m, k].
        largest: Largest absolute value of each channel, over more of them, [k].
        group: Neighbouring channels that share a scale.

    Returns:
        [k], with a geometric mean of one.
    """
    expected = activations @ weights.T

    def error(divisor: Array) -> float:
        product = to_nearest(activations / divisor, group=group) @ to_nearest(weights * divisor, group=group).T
        return float(np.square(product - expected).sum())

    choices = [np.ones_like(largest)]
    for share in SHARES:
        top = np.maximum(largest, ALMOST_ZERO) ** share
        divisor = top / np.maximum(np.abs(weights).max(axis=0), ALMOST_ZERO) ** (1.0 - share)
        choices.append((divisor / np.exp(np.log(divisor).mean())).astype(np.float32))
    return min(choices, key=error)


def rounded(weights: Array, moments: npt.NDArray[np.float64], *, group: int) -> tuple[npt.NDArray[np.int8], Array]:
    """Weights rounded to int8 by GPTQ (algorithm 1), channels with the largest moments first.

    Args:
        weights: [n, k].
        moments: X'X of what they are multiplied with, [k, k].
        group: Neighbouring channels that share a scale; it divides k.

    Returns:
        int8 [n, k], and scales [n, k / group]; each weight stands for itself times its scale.
    """
    scales = _scales(weights, group)
    order = np.argsort(-np.diag(moments))
    damped = moments[np.ix_(order, order)] + DAMPING * max(np.diag(moments).mean(), ALMOST_ZERO) * np.eye(len(order))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weights[:, order].astype(np.float64)
    found = np.empty(weights.shape, dtype=np.int8)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = np.empty((len(weights), stop - start))
        for channel in range(start, stop):
            scale = scales[:, order[channel] // group]
            values = np.clip(np.rint(left[:, channel] / scale), -LARGEST, LARGEST)
            error = (left[:, channel] - values * scale) / upper[channel, channel]
            left[:, channel + 1 : stop] -= np.outer(error, upper[channel, channel + 1 : stop])
            errors[:, channel - start] = error
            found[:, order[channel]] = values
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return found, scales


def to_nearest(values: Array, *, group: int) -> Array:
    """Values [n, k] as the nearest int8 steps give them, with a scale for each row and group of channels."""
    scales = np.repeat(_scales(values, group), group, axis=1)
    result: Array = np.rint(values / scales) * scales
    return result


def _scales(values: Array, group: int) -> Array:
    """What one step of int8 stands for, [n, k / group]."""
    largest = np.abs(values.reshape(len(values), -1, group)).max(axis=2)
    result: Array = np.maximum(largest, ALMOST_ZERO) / LARGEST
    return result
