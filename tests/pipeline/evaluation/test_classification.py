"""Top-1 and its confusion counts."""

import pytest
import torch

from pipeline.evaluation.classification import TopOne
from pipeline.training.workers import Workers

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [0.0, 1.0, 5.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def test_top1_is_the_share_of_right_predictions_over_all_batches() -> None:
    metric = TopOne(3)
    metric.update(LOGITS[:3], LABELS[:3])
    metric.update(LOGITS[3:], LABELS[3:])
    metric.merge(Workers())
    assert (metric.seen, metric.compute()) == (4, {"top1": 0.75})
    assert metric.details() == {"confusion": [[1, 0, 0], [0, 1, 1], [0, 0, 1]]}


def test_top1_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        TopOne(3).compute()
