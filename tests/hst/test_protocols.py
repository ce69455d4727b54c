"""What heads return, added up."""

import pytest
import torch

from hst.protocols import total_loss


def test_what_is_minimised_is_the_sum_of_the_losses() -> None:
    losses = {"boxes": torch.tensor(1.5), "classes": torch.tensor(0.25)}
    assert total_loss(losses) == 1.75


def test_a_single_loss_is_minimised_as_it_is() -> None:
    loss = torch.tensor(0.1)
    assert total_loss({"loss": loss}) is loss


def test_a_head_without_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="no loss"):
        total_loss({})


def test_of_several_losses_none_is_called_as_their_sum() -> None:
    with pytest.raises(ValueError, match="the name loss is for their sum"):
        total_loss({"loss": torch.tensor(0.1), "bias": torch.tensor(0.1)})
