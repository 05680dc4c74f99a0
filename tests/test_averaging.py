from __future__ import annotations

import pytest
import torch
from torch import nn

from madewithml import averaging


def model(weight: float, steps: int = 0) -> nn.Module:
    """A linear layer beside a buffer of whole numbers."""
    layer = nn.Linear(1, 1)
    layer.register_buffer("steps", torch.tensor(steps))
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(-weight)
    return layer


def weight(of: nn.Module) -> float:
    weights = of.get_parameter("weight").item()
    assert of.get_parameter("bias").item() == -weights
    return weights


def test_the_running_average_weighs_the_newest_by_what_the_decay_leaves() -> None:
    current = model(0.0)
    average = averaging.running_average(current, decay=0.5)
    average.update_parameters(current)  # the first is the copy itself
    seen = []
    for value in (1.0, 2.0):
        with torch.no_grad():
            current.get_parameter("weight").fill_(value)
        average.update_parameters(current)
        seen.append(average.module.get_parameter("weight").item())
    first = 1 - 2 / 11  # early on the decay is (1 + t) / (10 + t)
    assert seen == pytest.approx([first, first + (2 - first) * (1 - 3 / 12)])


def test_the_soup_is_the_mean_of_the_fits() -> None:
    soup = averaging.Soup(model(1.0))
    for value in (2.0, 3.0, 7.0):
        soup.add(model(value, steps=5))
    target = model(0.0)
    soup.pour(target)
    assert weight(target) == pytest.approx(4.0)
    assert target.get_buffer("steps").item() == 5


def test_neither_fitting_on_nor_pouring_changes_what_the_soup_has() -> None:
    start, fitted = model(1.0), model(2.0)
    soup = averaging.Soup(start)
    soup.add(fitted)
    with torch.no_grad():
        start.get_parameter("weight").fill_(9.0)
        fitted.get_parameter("weight").fill_(9.0)
    soup.pour(fitted)
    soup.restart(start)
    assert (weight(fitted), weight(start)) == (2.0, 1.0)


def test_a_soup_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a soup of no fits"):
        averaging.Soup(model(1.0)).pour(model(1.0))
