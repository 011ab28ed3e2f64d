"""Losses, optimizers and schedules, each against values that are worked out by hand."""

import math

import pytest
import torch
from torch import nn

from mmsearch.train.losses import (
    LABEL_LOSSES,
    LOSSES,
    binary_cross_entropy,
    cross_entropy,
    info_nce,
    matched,
    sigmoid,
    triplet,
)
from mmsearch.train.optimizers import OPTIMIZERS, SCHEDULES, optimizer, schedule

NONE_ALIKE = torch.zeros(2, 2, dtype=torch.bool)


def test_info_nce_is_what_it_is_by_hand() -> None:
    # Rows and columns: -log(e^2 / (e^2 + e^0)) and -log(e^1 / (e^1 + e^0)), the same both ways.
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert info_nce(scores, NONE_ALIKE).item() == pytest.approx(by_hand, rel=1e-6)


def test_the_sigmoid_loss_is_what_it_is_by_hand() -> None:
    # Two pairs: chance is log(1) = 0. Right ones log(1 + e^-s), wrong ones log(1 + e^s), over two pictures.
    scores = torch.tensor([[2.0, -1.0], [0.5, 1.0]])
    by_hand = (
        math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5)) + math.log1p(math.exp(-1))
    ) / 2
    assert sigmoid(scores, NONE_ALIKE).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    alike = torch.zeros(5, 5, dtype=torch.bool)
    alike[0, 3] = True
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, alike), scores)


@pytest.mark.parametrize("name", LOSSES)
def test_a_text_that_fits_as_well_is_no_mistake(name: str) -> None:
    alike = torch.tensor([[False, True], [False, False]])
    low, high = (torch.tensor([[1.0, wrong], [0.0, 1.0]]) for wrong in (-5.0, 5.0))
    assert LOSSES[name](low, alike).item() == pytest.approx(LOSSES[name](high, alike).item())
    assert LOSSES[name](low, NONE_ALIKE).item() < LOSSES[name](high, NONE_ALIKE).item()


def test_the_triplet_loss_is_what_it_is_by_hand() -> None:
    # Row 0: right 0.5; 0.4 is the best that is worse: 0.2 + 0.4 - 0.5 = 0.1. Row 1: right 0.3, all others are better:
    # the least of them, 0.6: 0.2 + 0.6 - 0.3 = 0.5. Row 2: right 0.9; 0.1 is far enough: 0.
    # Columns: 0.1 is far enough from 0.5; 0.2 + 0.1 - 0.3 = 0; 0.8 is too near to 0.9: 0.1.
    scores = torch.tensor([[0.5, 0.4, 0.7], [0.6, 0.3, 0.8], [0.1, 0.1, 0.9]])
    rows = (0.1 + 0.5 + 0.0) / 3
    columns = (0.0 + 0.0 + 0.1) / 3
    assert triplet(scores, torch.zeros(3, 3, dtype=torch.bool)).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_a_triplet_that_is_right_by_the_margin_costs_nothing() -> None:
    assert triplet(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), NONE_ALIKE).item() == 0
    assert triplet(torch.tensor([[0.9]]), torch.zeros(1, 1, dtype=torch.bool)).item() == 0  # nothing to be better than


def test_matched_and_unmatched_pairs_weigh_the_same_by_hand() -> None:
    scores = torch.tensor([[2.0, -1.0], [0.5, 1.0]])
    right = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    wrong = (math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))) / 2
    assert matched(scores, NONE_ALIKE).item() == pytest.approx((right + wrong) / 2, rel=1e-6)


def test_the_log_loss_is_the_negative_one_by_hand() -> None:
    # p = 1 / (1 + e^-2) = 0.880797, said to be 1; p = 1 / (1 + e^1) = 0.268941, said to be 0
    logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    by_hand = -(math.log(0.8807970779) + math.log(1 - 0.2689414214)) / 2
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(by_hand, rel=1e-6)
    certain = binary_cross_entropy(torch.tensor([200.0]), torch.tensor([0.0]))
    assert certain.item() == pytest.approx(200)  # where log(1 - p) would be infinite


def test_cross_entropy_is_what_it_is_by_hand_and_weighted() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    first, second = math.log1p(math.exp(-2)), math.log1p(math.exp(1))
    assert cross_entropy(logits, labels).item() == pytest.approx((first + second) / 2, rel=1e-6)
    weighted = cross_entropy(logits, labels, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * first + second) / 4, rel=1e-6)


@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_a_loss_of_labels_is_that_of_finite_differences(name: str, weighted: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn((4, 3) if name == "cross_entropy" else (4,), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 1, 1]) if name == "cross_entropy" else torch.tensor([1, 0, 0.3, 1])
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(lambda rows: LABEL_LOSSES[name](rows, labels, weights), logits)


# One step from 1.0 with the gradient 0.5, rate 0.1, decay 0.2 on a matrix
BY_HAND = {
    "adamw": 1.0 * (1 - 0.1 * 0.2) - 0.1,  # the decay apart, then a step of the whole rate
    "adam": 1.0 - 0.1,  # the decay is in the gradient, and lost in its length
    "rmsprop": 1.0 - 0.1 * 0.7 / math.sqrt(0.01 * 0.7**2),  # over the root of 1 % of the square
    "sgd": 1.0 - 0.1 * (0.7 + 0.9 * 0.7),  # Nesterov's momentum looks one step ahead
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_step_that_it_takes_by_hand(name: str) -> None:
    weight = nn.Parameter(torch.tensor([[1.0]]))
    moved = optimizer(name, [weight], learning_rate=0.1, weight_decay=0.2)
    (weight * 0.5).sum().backward()
    moved.step()
    assert weight.item() == pytest.approx(BY_HAND[name], abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_biases_do_not_decay_and_what_is_frozen_stays(name: str) -> None:
    bias, frozen = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([[1.0]]), requires_grad=False)
    moved = optimizer(name, [bias, frozen], learning_rate=0.1, weight_decay=0.2)
    (bias * 0).sum().backward()
    moved.step()
    assert (bias.item(), frozen.item()) == (1.0, 1.0)


def test_the_rate_rises_straight_and_falls_as_a_cosine() -> None:
    moved = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    rates = schedule("cosine", moved, steps=10, warmup_steps=2)
    seen = []
    for _ in range(10):
        seen.append(moved.param_groups[0]["lr"])
        moved.step()
        rates.step()
    assert seen[0] == pytest.approx(2.0 * 0.5)
    assert seen[5] == pytest.approx(2.0 * 0.5)
    assert seen[9] == pytest.approx(2.0 * 0.5 * (1 + math.cos(0.9 * math.pi)))
    assert moved.param_groups[0]["lr"] == pytest.approx(0)
    assert [SCHEDULES["constant"](step, 10, 4) for step in (0, 3, 9)] == [0.25, 1.0, 1.0]
