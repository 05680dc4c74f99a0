from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from madewithml import fitting

PARAMETERS = fitting.Hyperparameters(learning_rate=0.1, head_learning_rate=0.2, warmup_share=0.5)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


class Tiny(torch.nn.Module):
    """A linear model over the mean of the ids, shaped like a classifier of Transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(1, 3)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        mean = (input_ids * attention_mask).sum(dim=1, keepdim=True) / attention_mask.sum(dim=1, keepdim=True)
        return SimpleNamespace(logits=self.head(torch.tanh(self.body(mean / 10))))


@pytest.fixture
def examples() -> fitting.Examples:
    """Class 0 has small ids, class 1 large ones."""
    tokens = [[i % 5 + 1] * (i % 4 + 1) for i in range(10)] + [[i % 5 + 30] * (i % 4 + 1) for i in range(10)]
    return fitting.Examples(tokens, [0] * 10 + [1] * 10)


def test_batches_hold_the_rows_in_the_given_order(examples: fitting.Examples) -> None:
    found = list(fitting.batches(examples, batch_size=2, pad_id=9, order=[3, 0, 11]))
    assert [labels.tolist() for _, _, labels in found] == [[0, 0], [1]]
    assert found[0][0].tolist() == [[4, 4, 4, 4], [1, 9, 9, 9]]
    assert found[0][1].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_an_epoch_takes_every_row_once() -> None:
    lengths = [7, 3, 9] * 33
    assert sorted(fitting.epoch_order(lengths, batch_size=8, seed=0, epoch=1)) == list(range(99))


def test_an_epochs_order_is_repeatable_and_differs_from_epoch_to_epoch() -> None:
    lengths = list(range(50))
    orders = [
        fitting.epoch_order(lengths, batch_size=4, seed=seed, epoch=epoch) for seed, epoch in ((0, 1), (0, 2), (1, 1))
    ]
    assert fitting.epoch_order(lengths, batch_size=4, seed=0, epoch=1) == orders[0]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_like_lengths_share_batches() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, size=128).tolist()
    order = fitting.epoch_order(lengths, batch_size=8, seed=0, epoch=1)
    spreads = [np.ptp([lengths[i] for i in order[start : start + 8]]) for start in range(0, 128, 8)]
    assert max(spreads) < 40


def test_the_short_batch_comes_last() -> None:
    order = fitting.epoch_order([1] * 10, batch_size=4, seed=0, epoch=1)
    assert len(order) == 10
    assert fitting.epoch_order([], batch_size=4, seed=0, epoch=1) == []


@pytest.mark.parametrize(("world", "batch_size", "rows"), [(1, 4, 20), (2, 4, 20), (2, 5, 19), (3, 2, 20)])
def test_workers_take_the_same_number_of_steps_and_no_row_twice(
    examples: fitting.Examples, world: int, batch_size: int, rows: int
) -> None:
    part = fitting.Examples(examples.tokens[:rows], list(range(rows)))
    taken = []
    for rank in range(world):
        share = fitting.Share(rank, world, batch_size=batch_size, num_rows=rows)
        batches = list(share.batches(part, pad_id=0, seed=0, epoch=1))
        assert len(batches) == share.steps
        assert max(len(labels) for _, _, labels in batches) == share.own_batch_size
        taken += [row for _, _, labels in batches for row in labels.tolist()]
    assert len(set(taken)) == len(taken) == rows - rows % world


def test_balanced_weights_are_scikit_learns() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=np.array(labels))
    np.testing.assert_allclose(fitting.balanced_weights(labels, 3).numpy(), expected, rtol=1e-6)


def test_a_class_without_rows_has_a_finite_weight() -> None:
    assert torch.isfinite(fitting.balanced_weights([0, 0], 3)).all()


def test_the_rate_rises_to_one_and_falls_to_zero() -> None:
    factors = [fitting.rate_factor(step, warmup_steps=4, total_steps=12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert (factors[12], fitting.rate_factor(99, warmup_steps=4, total_steps=12)) == (0.0, 0.0)


def test_a_rate_whose_warm_up_is_all_there_is_stays_finite() -> None:
    assert [fitting.rate_factor(step, warmup_steps=1, total_steps=1) for step in (0, 1)] == [1.0, 0.0]


def test_training_steps_lower_the_loss_and_the_accuracy_becomes_perfect(examples: fitting.Examples) -> None:
    model = Tiny()
    optimizer, schedule = fitting.make_optimizer(model, list(model.head.parameters()), PARAMETERS, total_steps=60)
    before = fitting.eval_step(model, examples, pad_id=0)
    for epoch in range(12):
        order = fitting.epoch_order([len(t) for t in examples.tokens], batch_size=4, seed=0, epoch=epoch)
        for batch in fitting.batches(examples, batch_size=4, pad_id=0, order=order):
            fitting.train_step(model, optimizer, batch, None)
            schedule.step()
    after = fitting.eval_step(model, examples, pad_id=0)
    assert after.loss < before.loss
    assert after.accuracy == 1.0


def test_evaluation_does_not_depend_on_the_batch_size(
    examples: fitting.Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, losses = Tiny(), []
    for size in (1, 3, 64):
        monkeypatch.setattr(fitting, "EVAL_BATCH_SIZE", size)
        losses.append(fitting.eval_step(model, examples, pad_id=0).loss)
    assert losses == [pytest.approx(losses[0], abs=1e-6)] * 3


def test_evaluation_changes_no_weight(examples: fitting.Examples) -> None:
    model = Tiny()
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    fitting.eval_step(model, examples, pad_id=0)
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())


def test_class_weights_change_the_loss_of_a_step(examples: fitting.Examples) -> None:
    batch = next(fitting.batches(examples, batch_size=20, pad_id=0, order=[0, 1, 2, 15]))
    losses = []
    for weights in (None, torch.tensor([1.0, 9.0])):
        model = Tiny()
        optimizer, _ = fitting.make_optimizer(model, list(model.head.parameters()), PARAMETERS, total_steps=4)
        losses.append(fitting.train_step(model, optimizer, batch, weights))
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def test_the_head_learns_at_its_own_rate_and_both_warm_up() -> None:
    model = Tiny()
    optimizer, schedule = fitting.make_optimizer(model, list(model.head.parameters()), PARAMETERS, total_steps=8)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[3] == pytest.approx([0.1, 0.2])
    assert rates[0] == pytest.approx([0.025, 0.05])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def validation(*losses: float) -> fitting.Validation:
    return fitting.Validation(np.array(losses), accuracy=0.5)


def test_it_stops_when_the_loss_has_not_fallen_for_as_long_as_its_patience() -> None:
    stopping = fitting.EarlyStopping(patience=2)
    losses = (1.0, 1.1, 0.9, 0.9, float("nan"))
    seen = [(stopping.keeps(validation(loss)), stopping.should_stop) for loss in losses]
    # the same loss again is no gain, but the later epoch is kept; what is no number never is
    assert seen == [(True, False), (False, False), (True, False), (True, False), (False, True)]


def test_a_later_epoch_is_kept_if_it_is_worse_by_no_more_than_the_standard_error() -> None:
    def kept(*losses: float) -> bool:
        stopping = fitting.EarlyStopping(patience=9)
        stopping.keeps(validation(1.0, 1.0, 1.0, 1.0))
        return stopping.keeps(validation(*losses))

    assert kept(1.5, 0.6, 1.5, 0.6)  # 0.05 worse, give or take 0.225
    assert not kept(1.05, 1.05, 1.05, 1.06)  # no further off, and surely so


def test_later_epochs_are_compared_with_the_best_and_not_with_the_one_kept() -> None:
    stopping = fitting.EarlyStopping(patience=9)
    kept = [stopping.keeps(validation(1.0 + 0.3 * i, 1.0 - 0.1 * i)) for i in range(4)]
    assert stopping.best is not None
    assert (kept, stopping.best.loss) == ([True] * 4, 1.0)


def test_an_epoch_whose_loss_is_no_number_is_never_kept() -> None:
    stopping = fitting.EarlyStopping(patience=1)
    assert (stopping.keeps(validation(float("nan"))), stopping.should_stop) == (False, True)


def test_the_head_starts_as_the_logistic_regression_on_what_the_encoder_gives(examples: fitting.Examples) -> None:
    model = Tiny()
    before = fitting.eval_step(model, examples, pad_id=0)
    fitting.start_head(model, model.head, examples, PARAMETERS, 0)
    after = fitting.eval_step(model, examples, pad_id=0)
    assert after.loss < before.loss
    assert after.accuracy >= before.accuracy


def test_a_class_without_a_row_leaves_the_head_as_it_was(examples: fitting.Examples) -> None:
    model = Tiny()
    before = model.head.weight.clone()
    one_class = fitting.Examples(examples.tokens[:3], [0, 0, 0])
    fitting.start_head(model, model.head, one_class, PARAMETERS, 0)
    assert torch.equal(model.head.weight, before)
