"""Test the outputs of ensembles against probabilities that are averaged in float64."""

from __future__ import annotations

import pytest
import torch

from sftsearch.trainables.evaluation import average_outputs

MEMBERS = [torch.randn(5, 3, generator=torch.Generator().manual_seed(n)) * 4 for n in range(3)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_probabilities_of_classes_are_averaged(count: int) -> None:
    expected = sum(one.double().softmax(dim=1) for one in MEMBERS[:count]) / count
    found = average_outputs("classification", MEMBERS[:count]).softmax(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_probabilities_of_labels_are_averaged() -> None:
    expected = sum(one.double().sigmoid() for one in MEMBERS) / 3
    found = average_outputs("multilabel", MEMBERS).sigmoid()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_numbers_of_regression_are_averaged() -> None:
    numbers = [one[:, :1] for one in MEMBERS]
    expected = (numbers[0] + numbers[1] + numbers[2]) / 3
    torch.testing.assert_close(average_outputs("regression", numbers), expected)


def test_outputs_stay_finite_where_members_are_sure() -> None:
    sure = [torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]])]
    for task in ("classification", "multilabel"):
        found = average_outputs(task, sure)  # type: ignore[arg-type]
        assert found.isfinite().all()
        torch.testing.assert_close(found[0, 0], found[0, 1])  # half of them for each
