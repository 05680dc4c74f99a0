"""The steps of fitting, which each training worker takes epoch after epoch (`train_worker`).

    tokens -> batches (shuffled, like lengths together, a share per worker) -> train_step ... -> eval_step

They give the same weights for the same seed, data, number of workers and threads. With several workers the
gradients are averaged by torch's DistributedDataParallel, which Ray Train sets up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn, optim

from madewithml import calibration, tokenization

EVAL_BATCH_SIZE = 32
# Inverse regularisation of the head's start, for features of length 1.
PROBE_STRENGTH = 10.0
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Hyperparameters:
    """What governs fitting.

    Attributes:
        num_epochs: Most passes over the train rows, in each fit.
        batch_size: Rows a step, over all workers together.
        learning_rate: Peak rate of the encoder.
        head_learning_rate: Peak rate of the new head.
        weight_decay: AdamW's decay.
        warmup_share: Share of the steps in which the rate rises.
        average_decay: Of the running average of the weights, which is what is validated and kept.
        patience: Epochs without a better validation loss before a fit stops.
        num_fits: Fits from the same start, each with the rows in another order; their weights are averaged.
        freeze_embeddings: Whether the encoder's word embeddings stay as they are.
        class_weights: Whether rare classes count more in the loss.
        seed: Of everything random.
    """

    num_epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    average_decay: float = 0.95
    patience: int = 3
    num_fits: int = 2
    freeze_embeddings: bool = True
    class_weights: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """Tokenised rows with their label indices."""

    tokens: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)


class Validation(NamedTuple):
    """What one look at the validation rows gave: the loss of each, float64 [n], in order of length; the accuracy."""

    losses: npt.NDArray[np.float64]
    accuracy: float

    @property
    def loss(self) -> float:
        """Their mean."""
        return float(self.losses.mean())

    def is_no_worse_than(self, other: Validation) -> bool:
        """Whether the loss is higher by at most one standard error of the difference (Breiman et al. 1984).

        On few validation rows such a difference is chance.
        """
        differences = self.losses - other.losses
        return float(differences.mean()) <= float(differences.std()) / math.sqrt(len(differences))


def batches(examples: Examples, *, batch_size: int, pad_id: int, order: Sequence[int]) -> Iterator[Batch]:
    """Yield ids, mask and labels, int64 [n, length], [n, length] and [n], in the given order of rows."""
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = tokenization.pad([examples.tokens[i] for i in chosen], pad_id=pad_id)
        yield torch.from_numpy(ids), torch.from_numpy(mask), torch.tensor([examples.labels[i] for i in chosen])


def epoch_order(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[int]:
    """A shuffled order in which like lengths still share batches: padding is most of the cost of short texts.

    Rows are shuffled, sorted by length within pools of 16 batches, and the batches are shuffled again.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths)).tolist()
    pool = 16 * batch_size
    cut: list[list[int]] = []
    for start in range(0, len(shuffled), pool):
        ordered = sorted(shuffled[start : start + pool], key=lambda i: lengths[i])
        cut.extend(ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size))
    last = cut.pop() if cut and len(cut[-1]) < batch_size else []
    order = [i for index in generator.permutation(len(cut)) for i in cut[index]]
    return order + last


@dataclass(frozen=True)
class Share:
    """One worker's share of every batch.

    Every worker takes the same number of steps, so at most `world - 1` rows of an epoch are left out.

    Attributes:
        rank: This worker.
        world: Number of workers.
        batch_size: Rows a step over all workers.
        num_rows: Rows to fit on.
    """

    rank: int
    world: int
    batch_size: int
    num_rows: int

    @property
    def own_batch_size(self) -> int:
        """Rows a step of this worker."""
        return max(1, self.batch_size // self.world)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil((self.num_rows // self.world) / self.own_batch_size)

    def batches(self, examples: Examples, *, pad_id: int, seed: int, epoch: int) -> Iterator[Batch]:
        """This worker's batches of one epoch."""
        lengths = [len(tokens) for tokens in examples.tokens]
        order = epoch_order(lengths, batch_size=self.batch_size, seed=seed, epoch=epoch)
        usable = self.num_rows - self.num_rows % self.world
        own = order[:usable][self.rank :: self.world]
        return batches(examples, batch_size=self.own_batch_size, pad_id=pad_id, order=own)


def balanced_weights(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """Weight of each class, n / (k * count), float32 [k]: scikit-learn's "balanced"."""
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(len(labels) / (num_classes * np.maximum(counts, 1)), dtype=torch.float32)


def rate_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Linear rise to 1 over the warm-up, then linear fall to 0 at the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def train_step(
    model: nn.Module,
    optimizer: optim.Optimizer,
    batch: Batch,
    weights: torch.Tensor | None,
) -> float:
    """One gradient step; returns the batch's mean loss."""
    ids, mask, labels = batch
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels, weight=weights)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


@torch.inference_mode()
def start_head(
    model: nn.Module, layer: nn.Linear, examples: Examples, parameters: Hyperparameters, pad_id: int
) -> None:
    """Set the head's last layer to the logistic regression on what the pretrained encoder gives for these rows.

    Fitting that begins with a random head first spoils the encoder to please it (Kumar et al. 2022, "Fine-Tuning can
    Distort Pretrained Features").
    """
    from sklearn.linear_model import LogisticRegression

    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float()))
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples.tokens[i]))
    try:
        for ids, mask, _ in batches(examples, batch_size=EVAL_BATCH_SIZE, pad_id=pad_id, order=order):
            model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    features = torch.cat(seen).numpy()
    if features.ndim != 2 or len(set(examples.labels)) != layer.out_features:
        return  # a head of another kind, or a class without a row: it starts at random
    regression = LogisticRegression(
        C=PROBE_STRENGTH / float((features**2).sum(axis=1).mean()),
        max_iter=1000,
        class_weight="balanced" if parameters.class_weights else None,
    ).fit(features, [examples.labels[i] for i in order])
    weights, bias = regression.coef_, regression.intercept_
    if layer.out_features == 2:  # scikit-learn gives the second class's alone
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    layer.weight.copy_(torch.from_numpy(weights))
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(bias))


@torch.inference_mode()
def eval_step(model: nn.Module, examples: Examples, *, pad_id: int) -> Validation:
    """Cross-entropy and accuracy over `examples`.

    The cross-entropy is that at the best temperature of at least 1. The answers will be calibrated before anyone acts
    on them, so over-confidence that a temperature takes away is no reason to prefer another epoch.
    """
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples.tokens[i]))
    parts = [
        model(input_ids=ids, attention_mask=mask).logits
        for ids, mask, _ in batches(examples, batch_size=EVAL_BATCH_SIZE, pad_id=pad_id, order=order)
    ]
    logits = torch.cat(parts).float()
    labels = torch.tensor([examples.labels[i] for i in order])
    accuracy = float((logits.argmax(dim=1) == labels).float().mean().item())
    temperature = 1.0
    if bool(logits.isfinite().all()):
        temperature = max(temperature, calibration.fit_temperature(logits.numpy(), labels.numpy()))
    losses = F.cross_entropy(logits / temperature, labels, reduction="none")
    return Validation(losses.double().numpy(), accuracy)


def make_optimizer(
    model: nn.Module, head: Sequence[nn.Parameter], parameters: Hyperparameters, *, total_steps: int
) -> tuple[optim.AdamW, optim.lr_scheduler.LambdaLR]:
    """AdamW with a faster head, and its warm-up and decay."""
    head_ids = {id(p) for p in head}
    body = [p for p in model.parameters() if id(p) not in head_ids and p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": body, "lr": parameters.learning_rate},
        {"params": list(head), "lr": parameters.head_learning_rate},
    ]
    optimizer = optim.AdamW(groups, weight_decay=parameters.weight_decay, fused=True)
    warmup_steps = max(1, math.ceil(total_steps * parameters.warmup_share))
    schedule = optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, warmup_steps=warmup_steps, total_steps=total_steps)
    )
    return optimizer, schedule


@dataclass
class EarlyStopping:
    """Remembers the best validation and says which epochs to keep and when to stop.

    An epoch is kept if its loss is the lowest so far, or no worse than the lowest but for chance: the later epoch has
    learned at a lower rate.
    """

    patience: int
    best: Validation | None = None
    epochs_without_gain: int = 0

    def keeps(self, validation: Validation) -> bool:
        """Note one epoch's validation; whether the epoch is to be kept instead of the one before."""
        if math.isfinite(validation.loss) and (self.best is None or validation.loss < self.best.loss):
            self.best, self.epochs_without_gain = validation, 0
            return True
        self.epochs_without_gain += 1
        if self.best is None or not math.isfinite(validation.loss):
            return False
        return validation.is_no_worse_than(self.best)

    @property
    def should_stop(self) -> bool:
        """Whether patience is at its end."""
        return self.epochs_without_gain >= self.patience
