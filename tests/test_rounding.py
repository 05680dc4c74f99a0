from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from madewithml import rounding

Array = npt.NDArray[np.float32]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def weights(rng: np.random.Generator) -> Array:
    return rng.normal(size=(24, 300)).astype(np.float32)


@pytest.fixture
def activations(rng: np.random.Generator) -> Array:
    """Channels that go together, as those of a network do."""
    return (rng.normal(size=(400, 40)) @ rng.normal(size=(40, 300))).astype(np.float32)


def moments(activations: Array) -> npt.NDArray[np.float64]:
    return (activations.T @ activations).astype(np.float64)


def product_error(found: Array, weights: Array, activations: Array) -> float:
    return float(np.square(activations @ (found - weights).T).mean())


def restored(values: npt.NDArray[np.int8], scales: Array) -> Array:
    return values * np.repeat(scales, 60, axis=1)


class TestRounded:
    def test_weights_become_int8_with_a_scale_for_each_output_and_group(
        self, weights: Array, activations: Array
    ) -> None:
        values, scales = rounding.rounded(weights, moments(activations), group=60)
        assert (values.dtype, values.shape, scales.shape) == (np.int8, (24, 300), (24, 5))
        assert np.abs(values.astype(int)).max() <= 127

    def test_channels_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest(self, weights: Array) -> None:
        values, scales = rounding.rounded(weights, np.eye(300), group=60)
        np.testing.assert_allclose(restored(values, scales), rounding.to_nearest(weights, group=60), atol=1e-6)

    def test_the_product_stays_nearer_than_with_the_nearest(self, weights: Array, activations: Array) -> None:
        values, scales = rounding.rounded(weights, moments(activations), group=60)
        nearest = product_error(rounding.to_nearest(weights, group=60), weights, activations)
        assert product_error(restored(values, scales), weights, activations) < 0.5 * nearest

    def test_channels_that_were_never_seen_are_rounded_all_the_same(self, weights: Array) -> None:
        values, scales = rounding.rounded(weights, np.zeros((300, 300)), group=60)
        np.testing.assert_allclose(restored(values, scales), rounding.to_nearest(weights, group=60), atol=1e-6)

    def test_weights_of_zero_stay_zero(self, activations: Array) -> None:
        values, _ = rounding.rounded(np.zeros((2, 300), np.float32), moments(activations), group=60)
        assert not values.any()


class TestSmoothing:
    def test_a_channel_far_larger_than_the_rest_is_divided_by_more(self, weights: Array, activations: Array) -> None:
        activations[:, 7] *= 200
        divisor = rounding.smoothing(weights, activations, np.abs(activations).max(axis=0), group=60)
        assert divisor.argmax() == 7
        assert np.log(divisor).mean() == pytest.approx(0, abs=1e-4)

    def test_both_sides_rounded_the_product_is_nearer_for_it(self, weights: Array, activations: Array) -> None:
        activations[:, 7] *= 200
        divisor = rounding.smoothing(weights, activations, np.abs(activations).max(axis=0), group=60)
        expected = activations @ weights.T
        errors = []
        for each in (divisor, np.ones_like(divisor)):
            smooth, scaled = activations / each, weights * each
            product = rounding.to_nearest(smooth, group=60) @ rounding.to_nearest(scaled, group=60).T
            errors.append(np.square(product - expected).sum())
        assert errors[0] < 0.5 * errors[1]

    def test_channels_without_activations_or_weights_do_no_harm(self, weights: Array, activations: Array) -> None:
        weights[:, 1], activations[:, 2] = 0.0, 0.0
        divisor = rounding.smoothing(weights, activations, np.abs(activations).max(axis=0), group=60)
        assert np.isfinite(divisor).all()
        assert (divisor > 0).all()
