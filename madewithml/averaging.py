"""Averages of weights, over the steps of a fit and over fits from the same start.

    step, step, ... -> running_average -> Soup.add (once a fit) ... -> Soup.pour -> one model

They cost nothing when the model answers: it has as many weights as each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn, optim


def running_average(model: nn.Module, *, decay: float) -> optim.swa_utils.AveragedModel:
    """A copy of the model that follows the average of its weights (Polyak & Juditsky 1992), one update a step.

    On few rows one epoch's end differs from the next by chance; the average is steadier, less over-confident, and
    better on rows it has not seen. The decay grows with the steps, (1 + t) / (10 + t) at most, so that a short
    training is not left with its first weights.
    """

    @torch.no_grad()
    def follow(averages: Any, currents: Any, num_averaged: torch.Tensor | int) -> None:
        steps = int(num_averaged)
        torch._foreach_lerp_(averages, currents, 1.0 - min(decay, (1 + steps) / (10 + steps)))

    return optim.swa_utils.AveragedModel(model, multi_avg_fn=follow)


class Soup:
    """The mean weights of several fits from one start.

    The mean of fits that saw the rows in different orders makes fewer mistakes than each of them, and is less
    over-confident (Wortsman et al. 2022, "Model soups").

    Args:
        start: The model that every fit starts from; its weights are copied.
    """

    def __init__(self, start: nn.Module) -> None:
        self._start = {name: values.detach().clone() for name, values in start.state_dict().items()}
        self._mean: dict[str, torch.Tensor] = {}
        self._num_fits = 0

    def restart(self, model: nn.Module) -> None:
        """Give the model the weights of the start."""
        model.load_state_dict(self._start)

    def add(self, fitted: nn.Module) -> None:
        """Take one fit's weights into the mean."""
        self._num_fits += 1
        for name, values in fitted.state_dict().items():
            if name not in self._mean:
                self._mean[name] = values.detach().clone()
            elif values.is_floating_point():
                self._mean[name].lerp_(values.detach(), 1.0 / self._num_fits)

    def pour(self, model: nn.Module) -> None:
        """Give the model the mean.

        Raises:
            ValueError: No fit was added.
        """
        if not self._num_fits:
            raise ValueError("a soup of no fits")
        model.load_state_dict(self._mean)
