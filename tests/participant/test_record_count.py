"""Nothing that leaves a participant depends on how many records it has: one less, and every length and divisor is the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hansa.local_grid import from_bytes
from hansa.models.config import ModelConfig
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.trainer import Rows, Trainer, update_bound
from hansa.privacy.noise import SecretRandom
from hansa.study import Study


def without(rows: Rows, *left_out: int) -> Rows:
    kept = [k for k in range(len(rows.labels)) if k not in left_out]
    return Rows(features=rows.features[kept], labels=rows.labels[kept])


def lengths(house: Any) -> tuple[list[int], list[list[tuple[str, Any]]]]:
    """Bytes of everything that bank-1 uploads, and of every field of the replies of all members, in order."""
    replies = []
    for direction, data in house.grid_bytes:
        if direction == "from node":
            record = dict(from_bytes(data).content.config_records["reply"])
            replies.append(
                sorted(
                    (key, [len(v) for v in value] if isinstance(value, list) else len(value))
                    for key, value in record.items()
                    if not isinstance(value, bool)
                )
            )
    return [len(part) for part in house.wires["bank-1"].sent], replies


@pytest.mark.parametrize("left_out", [(0,), tuple(range(79)), tuple(range(80))], ids=len)
def test_every_message_has_the_same_length_without_a_record(
    houses: Callable[..., Any], tiny_tables: dict[str, Any], tiny_study: Study, left_out: tuple[int, ...]
) -> None:
    whole = houses()
    fewer = houses(rows={"bank-1": without(tiny_tables["bank-1"].rows, *left_out)})
    for house in (whole, fewer):
        house.run()
        assert not any(house.errors.values())
    sent, replies = lengths(whole)
    assert lengths(fewer) == (sent, replies)
    assert len(sent) >= 2 * tiny_study.training.rounds
    assert sum(map(len, replies)) > 20


@pytest.mark.parametrize("count", [0, 1, 39, 200])
def test_divisor_and_clamp_range_are_the_same_for_any_number_of_records(
    study_with: Callable[..., Study], count: int
) -> None:
    study = study_with(privacy={"sample_rate": 1.0})
    model = FeatureTransformer(ModelConfig.of_study(study), torch.ones(3, 4, dtype=torch.bool)).eval()
    layout = TrainableLayout(model, ["head"])

    def update(records: int) -> np.ndarray:
        mute = Rows(features=torch.full((records, 3, 4), torch.nan), labels=torch.zeros(records))
        trainer = Trainer(
            study, model, layout, mute, noise_multiplier=1.0, random=SecretRandom(bytes(range(32)))
        )
        return trainer.update(layout.gather(model), np.arange(layout.size))

    # records without a finite gradient add zero, so what is left is the noise over the divisor, of the same seed
    np.testing.assert_array_equal(update(count), update(40))
    assert update_bound(study, 1.0) == pytest.approx(16 * 0.5 / 40)
