"""Private training: reproducible with an injected generator only, noised everywhere, and deaf to the number of records."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from hansa.errors import MissingColumn
from hansa.models.config import ModelConfig
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant import trainer as module
from hansa.participant.trainer import Rows, Trainer, summed_gradient, update_bound
from hansa.privacy.noise import SecretRandom, gaussian_noise
from hansa.privacy.per_sample import clipped_sum
from hansa.privacy.sampling import poisson_sample
from hansa.study import Study

SEED = bytes(range(32))
NO_NOISE = 1e-12  # as good as none; the trainer refuses none
FAR_TOO_UNLIKELY = 1e-9
Makes = Callable[..., Study]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A participant's parts, without the study."""

    model: FeatureTransformer
    layout: TrainableLayout
    rows: Rows
    values: NDArray[np.float64]
    everything: NDArray[np.int64]

    def update(
        self,
        study: Study,
        *,
        sigma: float = 1.0,
        seed: bytes = SEED,
        rows: Rows | None = None,
        support: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        trainer = Trainer(
            study,
            self.model,
            self.layout,
            self.rows if rows is None else rows,
            noise_multiplier=sigma,
            random=SecretRandom(seed),
        )
        return trainer.update(self.values, self.everything if support is None else support)


def rows_of(count: int, seed: int = 0) -> Rows:
    draws = torch.Generator().manual_seed(seed)
    return Rows(
        features=torch.randn(count, 3, 4, generator=draws),
        labels=(torch.rand(count, generator=draws) < 0.5).float(),
    )


@pytest.fixture(scope="module")
def bench(study_with: Makes) -> Bench:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FeatureTransformer(ModelConfig.of_study(study_with()), torch.ones(3, 4, dtype=torch.bool))
    layout = TrainableLayout(model, ["embedding", "class_token", "head"])
    values = np.random.default_rng(0).normal(size=layout.size) * 0.4
    return Bench(
        model=model.eval(),
        layout=layout,
        rows=rows_of(30),
        values=values,
        everything=np.arange(layout.size),
    )


def relative(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_same_seed_gives_the_same_update_and_another_one_another(
    bench: Bench, study_with: Makes, steps: int
) -> None:
    study = study_with(training={"local_steps": steps})
    before = bench.values.copy()
    first = bench.update(study)
    bench.layout.load(bench.model, np.zeros(bench.layout.size))  # whatever the model held
    np.testing.assert_array_equal(bench.update(study), first)
    assert (bench.update(study, seed=bytes(32)) != first).all()
    np.testing.assert_array_equal(bench.values, before)  # the common state is not changed


def test_one_step_is_sample_clip_noise_divide(bench: Bench, study_with: Makes) -> None:
    study = study_with()
    support = np.flatnonzero(np.random.default_rng(1).random(bench.layout.size) < 0.3)
    actual = bench.update(study, sigma=1.5, support=support)

    random = SecretRandom(SEED)
    batch = poisson_sample(30, 0.5, random.bytes)
    assert 0 < len(batch) < 30
    noise = gaussian_noise(len(support), clip_norm=0.5, noise_multiplier=1.5, random=random)
    bench.layout.load(bench.model, bench.values)
    taken = torch.from_numpy(batch)
    clipped = clipped_sum(
        bench.model,
        bench.layout,
        bench.rows.features[taken],
        bench.rows.labels[taken],
        support_K=support,
        clip_norm=0.5,
    ).sum_K
    np.testing.assert_array_equal(actual, (clipped + noise) / (0.5 * 40))


def test_several_local_steps_walk_along_their_own_noised_gradients(bench: Bench, study_with: Makes) -> None:
    support = np.arange(0, bench.layout.size, 2)
    study = study_with(training={"local_steps": 3, "local_learning_rate": 0.7}, privacy={"sample_rate": 1.0})
    actual = bench.update(study, support=support)

    random, local, total = SecretRandom(SEED), bench.values.copy(), np.zeros(len(support))
    everyone = np.arange(30)
    for _ in range(3):
        bench.layout.load(bench.model, local)
        clipped = summed_gradient(
            bench.model, bench.layout, bench.rows, everyone, support=support, clip_norm=0.5
        )
        noise = gaussian_noise(len(support), clip_norm=0.5, noise_multiplier=1.0, random=random)
        step = (clipped + noise) / 40
        local[support] -= 0.7 * step
        total += step
    np.testing.assert_allclose(actual, total, rtol=1e-12)
    still = study_with(
        training={"local_steps": 3, "local_learning_rate": 1e-12}, privacy={"sample_rate": 1.0}
    )
    assert relative(bench.update(still, support=support), actual) > 1e-3  # the steps do move


@pytest.mark.parametrize("steps", [1, 4])
def test_an_empty_sample_gives_pure_noise_of_the_same_shape(
    bench: Bench, study_with: Makes, steps: int
) -> None:
    study = study_with(training={"local_steps": steps})
    update = bench.update(study, sigma=2.0, rows=rows_of(0))
    assert update.shape == bench.update(study, sigma=2.0).shape == bench.everything.shape
    deviation = 2.0 * 0.5 * np.sqrt(steps) / (0.5 * 40)
    assert stats.kstest(update, "norm", args=(0.0, deviation)).pvalue > 0.01
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(update, "norm", args=(0.0, deviation * wrong)).pvalue < FAR_TOO_UNLIKELY


def test_every_entry_is_noised_experts_that_no_token_reached_too(bench: Bench, study_with: Makes) -> None:
    bench.layout.load(bench.model, bench.values)
    one = rows_of(1)
    gradient = clipped_sum(
        bench.model, bench.layout, one.features, one.labels, support_K=None, clip_norm=None
    ).sum_K
    untouched = gradient == 0.0
    assert untouched.sum() > 200  # of one row's tokens, some experts see none
    study = study_with(privacy={"sample_rate": 1.0})
    update = bench.update(study, rows=one)
    assert (update != 0.0).all()
    assert stats.kstest(update[untouched], "norm", args=(0.0, 0.5 / 40)).pvalue > 0.01


def test_the_noise_of_every_tensor_is_that_of_sigma_and_neither_two_thirds_nor_three_halves_of_it(
    bench: Bench, study_with: Makes
) -> None:
    """What is left of an update without its gradient, tensor by tensor, experts that no token reached included."""
    study, one = study_with(privacy={"sample_rate": 1.0}), rows_of(1)
    clean = bench.update(study, sigma=NO_NOISE, rows=one)
    noise = np.stack(
        [bench.update(study, rows=one, seed=bytes([k % 256, k // 256] * 16)) for k in range(400)]
    )
    noise -= clean
    deviation, tensors = 0.5 / 40, {slot.name: slot for slot in bench.layout.slots}
    assert {"embedding", "class_token", "head"} < set(tensors)
    assert any("down_B" in name for name in tensors)
    for name, slot in tensors.items():
        values = noise[:, slot.start : slot.stop].flatten()[:20_000]
        assert stats.kstest(values, "norm", args=(0.0, deviation)).pvalue > 1e-3, name
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(values, "norm", args=(0.0, deviation * wrong)).pvalue < FAR_TOO_UNLIKELY, name


def test_scale_and_length_depend_on_the_study_only_not_on_the_number_of_records(
    bench: Bench, study_with: Makes
) -> None:
    study = study_with(privacy={"sample_rate": 1.0})
    rows = bench.rows
    twice = Rows(features=torch.cat([rows.features] * 2), labels=torch.cat([rows.labels] * 2))
    # a sum over a public divisor: twice the records, twice the update; a mean would stay
    once = bench.update(study, sigma=NO_NOISE)
    assert relative(bench.update(study, sigma=NO_NOISE, rows=twice), 2 * once) < 1e-5
    # and the noise is the same whether 0, 1 or 200 records stand behind it
    for count in (0, 1, 200):
        mute = Rows(features=torch.full((count, 3, 4), torch.nan), labels=torch.zeros(count))
        update = bench.update(study, rows=mute)
        assert update.shape == once.shape
        assert stats.kstest(update, "norm", args=(0.0, 0.5 / 40)).pvalue > 0.01


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_one_record_more_or_less_moves_the_update_by_at_most_clip_norm_over_the_divisor(
    bench: Bench, study_with: Makes, share: float
) -> None:
    study = study_with(privacy={"sample_rate": 1.0})
    support = np.flatnonzero(np.random.default_rng(1).random(bench.layout.size) < share)
    whole = bench.update(study, sigma=NO_NOISE, support=support)
    changes = []
    for j in range(0, 30, 5):
        kept = torch.arange(30) != j
        without = Rows(features=bench.rows.features[kept], labels=bench.rows.labels[kept])
        update = bench.update(study, sigma=NO_NOISE, support=support, rows=without)
        changes.append(np.linalg.norm(whole - update))
    assert max(changes) <= 0.5 / 40 * (1 + 1e-5)
    assert max(changes) > 0.5 / 40 * 0.5  # the bound is not idle


def test_memory_does_not_grow_with_the_batch_and_parts_add_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.layout.load(bench.model, bench.values)
    arguments: dict[str, Any] = {"support": None, "clip_norm": 0.5}
    batch = np.array([0, 3, 4, 9, 10, 11, 29])
    whole = summed_gradient(bench.model, bench.layout, bench.rows, batch, **arguments)
    seen: list[int] = []

    def watched(model: Any, layout: Any, features: Any, labels: Any, **rest: Any) -> Any:
        seen.append(len(features))
        return clipped_sum(model, layout, features, labels, **rest)

    monkeypatch.setattr(module, "MICRO_BATCH", 3)
    monkeypatch.setattr(module, "clipped_sum", watched)
    parts = summed_gradient(bench.model, bench.layout, bench.rows, batch, **arguments)
    assert seen == [3, 3, 1]
    assert relative(parts, whole) < 1e-5
    # an empty batch touches no record
    empty = summed_gradient(bench.model, bench.layout, bench.rows, batch[:0], **arguments)
    assert empty.shape == whole.shape
    assert not empty.any()
    assert seen == [3, 3, 1]


def doubled(bench: Bench, count: int, seed: int) -> tuple[Any, Rows]:
    """The bench's model and rows in float64."""
    rows = rows_of(count, seed)
    model = deepcopy(bench.model).double()
    return model, Rows(features=rows.features.double(), labels=rows.labels.double())


@pytest.mark.parametrize("most", [1, 2, 5, 7, 30])
def test_micro_batches_of_any_size_give_the_sum_of_one_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    model, rows = doubled(bench, 30, 0)
    arguments: dict[str, Any] = {"support": None, "clip_norm": 0.5}
    owners = np.sort(np.random.default_rng(2).integers(0, 9, 30))
    for owner in (None, owners):
        whole = summed_gradient(model, bench.layout, rows, np.arange(30), owners=owner, **arguments)
        with monkeypatch.context() as smaller:
            smaller.setattr(module, "MICRO_BATCH", most)
            found = summed_gradient(model, bench.layout, rows, np.arange(30), owners=owner, **arguments)
        np.testing.assert_allclose(found, whole, rtol=1e-11, atol=1e-14)


# -- persons ---------------------------------------------------------------------------------------------


def by_person(study_with: Makes, most: int, **privacy: Any) -> Study:
    return study_with(
        data={"person": "id"},
        privacy={"unit": "person", "records_per_person": most, "sample_rate": 1.0} | privacy,
    )


@pytest.mark.parametrize("micro_batch", [512, 7, 3])
@pytest.mark.parametrize("most", [50, 4])
def test_one_person_with_fifty_records_moves_the_update_by_at_most_clip_norm_over_the_divisor(
    bench: Bench, study_with: Makes, monkeypatch: pytest.MonkeyPatch, most: int, micro_batch: int
) -> None:
    """Its records stand between those of others, and on both sides of every border of micro-batches."""
    monkeypatch.setattr(module, "MICRO_BATCH", micro_batch)
    study = by_person(study_with, most)
    model, rows = doubled(bench, 80, 3)
    persons = torch.arange(80) % 10 + 1
    persons[torch.randperm(80, generator=torch.Generator().manual_seed(1))[:50]] = 0
    whole = Rows(features=rows.features, labels=rows.labels, persons=persons)
    kept = persons != 0
    others = Rows(features=rows.features[kept], labels=rows.labels[kept], persons=persons[kept] - 1)

    def trainer(rows: Rows) -> Trainer:
        return Trainer(study, model, bench.layout, rows, noise_multiplier=NO_NOISE, random=SecretRandom(SEED))

    def update(rows: Rows) -> NDArray[np.float64]:
        return trainer(rows).update(bench.values, bench.everything)

    def clipped(rows: Rows) -> NDArray[np.float64]:  # what distributed noise is added to
        return trainer(rows).clipped_sum(bench.values, bench.everything)

    for change in (
        np.linalg.norm(update(whole) - update(others)),
        np.linalg.norm(clipped(whole) - clipped(others)) / 40,
    ):
        assert change <= 0.5 / 40 * (1 + 1e-9)
        assert change > 0.5 / 40 * 0.5


def test_persons_are_sampled_whole_with_their_first_records(
    bench: Bench, study_with: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = by_person(study_with, 3, sample_rate=0.5)
    persons = torch.arange(30) % 6  # five records each
    rows = Rows(features=bench.rows.features, labels=bench.rows.labels, persons=persons)
    asked: list[int] = []
    taken: list[list[int]] = []

    def watched(*arguments: Any, **rest: Any) -> NDArray[np.float64]:
        taken.append(arguments[3].tolist())
        return summed_gradient(*arguments, **rest)

    def sampled(units: int, rate: float, random_bytes: Any) -> NDArray[np.int64]:
        asked.append(units)
        return poisson_sample(units, rate, random_bytes)

    monkeypatch.setattr(module, "summed_gradient", watched)
    monkeypatch.setattr(module, "poisson_sample", sampled)
    for seed in range(20):
        bench.update(study, rows=rows, seed=bytes([seed]) * 32)
    assert set(asked) == {6}  # persons, not records
    seen = set()
    for batch in taken:
        drawn = sorted({record % 6 for record in batch})
        assert sorted(batch) == sorted(person + 6 * k for person in drawn for k in range(3))
        seen.update(drawn)
    assert seen == set(range(6))


def test_a_study_by_persons_without_persons_is_refused(bench: Bench, study_with: Makes) -> None:
    with pytest.raises(MissingColumn, match="person"):
        bench.update(by_person(study_with, 3))


def test_where_a_record_is_the_unit_persons_do_not_count(bench: Bench, study_with: Makes) -> None:
    owned = Rows(
        features=bench.rows.features, labels=bench.rows.labels, persons=torch.zeros(30, dtype=torch.int64)
    )
    np.testing.assert_array_equal(
        bench.update(study_with(), rows=owned), bench.update(study_with(), rows=bench.rows)
    )


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("train_embeddings", [True, False])
def test_trains_whatever_the_study_trains(
    bench: Bench, study_with: Makes, train_head: bool, train_embeddings: bool
) -> None:
    names = ["head"] * train_head + ["embedding", "class_token"] * train_embeddings
    layout = TrainableLayout(bench.model, names)
    trainer = Trainer(
        study_with(), bench.model, layout, bench.rows, noise_multiplier=1.0, random=SecretRandom(SEED)
    )
    update = trainer.update(layout.gather(bench.model), np.arange(layout.size))
    assert update.shape == (layout.size,)
    assert np.isfinite(update).all()


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_training_without_noise_is_refused(bench: Bench, study_with: Makes, sigma: float) -> None:
    with pytest.raises(ValueError, match="a noise multiplier is above 0"):
        bench.update(study_with(), sigma=sigma)


@pytest.mark.parametrize("steps", [1, 9])
def test_the_clamp_range_is_a_multiple_of_the_noise_of_one_entry(
    bench: Bench, study_with: Makes, steps: int
) -> None:
    study = study_with(training={"local_steps": steps}, compression={"range_noise_multiples": 10.0})
    bound = update_bound(study, 1.7)
    assert bound == pytest.approx(10 * 1.7 * 0.5 * np.sqrt(steps) / 20, rel=1e-12)
    noise = bench.update(study, sigma=1.7, rows=rows_of(0))
    assert noise.std() == pytest.approx(bound / 10, rel=0.1)


def test_the_repr_shows_no_record() -> None:
    rows = Rows(features=torch.full((1, 1, 1), 123.456), labels=torch.tensor([1.0]))
    assert repr(rows) == "Rows(...)"
