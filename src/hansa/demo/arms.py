"""The models that the joint one is compared with. Each starts from the same public base and trains the same entries.

None of these is a study: they see data that no participant may see, or train without privacy.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.demo.arena import Ground, logits
from hansa.models.pretraining import Base
from hansa.models.transformer import FeatureTransformer
from hansa.participant.shared_state import SharedState, result_of
from hansa.participant.trainer import Rows, Trainer, summed_gradient
from hansa.privacy.accounting import calibrate
from hansa.privacy.noise import SecretRandom
from hansa.privacy.sampling import poisson_sample
from hansa.secure_agg.codec import kept_entries, select_support
from hansa.secure_agg.parameters import layout_for
from hansa.study import Study

Vector = NDArray[np.float64]

# Training without privacy. Chosen on another data set, like the study's own settings.
EPOCHS = 12
PATIENCE = 3
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-2
BATCH_ROWS = 128
VALIDATION_SHARE = 0.2


def train_plainly(base: Base, rows: Rows, *, seed: int, batch_rows: int = BATCH_ROWS) -> Vector:
    """Train without privacy, with AdamW and early stopping on a stratified fifth of the rows.

    Args:
        base: Where to start.
        rows: All rows that may be used.
        seed: Seed of split and batches.
        batch_rows: Rows a step.

    Returns:
        (P,) the trained vector of the epoch with the least validation loss; that of the last epoch where the validation rows
        have one class only.
    """
    random = np.random.default_rng(seed)
    training, validation = _split(rows.labels.numpy(), random)
    model = base.model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_loss, waited = base.layout.gather(model), _loss(model, rows, validation), 0
    for _ in range(EPOCHS):
        random.shuffle(training)
        for start in range(0, len(training), batch_rows):
            part = torch.from_numpy(training[start : start + batch_rows])
            outputs = model(rows.features[part])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, rows.labels[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        current = _loss(model, rows, validation)
        if current < best_loss:
            best, best_loss, waited = base.layout.gather(model), current, 0
        else:
            waited += 1
            if waited >= PATIENCE:
                break
    return best


def train_alone_privately(study: Study, base: Base, rows: Rows) -> Vector:
    """Train one bank alone under the study's own differential privacy: the joint mechanism with one participant."""
    noise_multiplier = _calibrated(study)
    model = base.model()
    random = SecretRandom()
    trainer = Trainer(study, model, base.layout, rows, noise_multiplier=noise_multiplier, random=random)
    start = base.layout.gather(model)
    state = SharedState(values=start.copy())
    for _ in range(study.training.rounds):
        support = _support(study, base, state, compress=True)
        state.apply(support, trainer.update(state.values, support), study, bytes(32))
    return result_of(start, state.values, study)


def train_jointly(study: Study, base: Base, ground: Ground, *, noise: bool, compress: bool) -> Vector:
    """Run the joint study without masks and encryption, with or without noise and compression.

    Args:
        study: The agreement.
        base: Where to start.
        ground: The banks' rows.
        noise: Whether to clip and to add the study's noise; without, this is federated training without privacy.
        compress: Whether only the support moves; without, every entry moves in every round.
    """
    model, random = base.model(), SecretRandom()
    start = base.layout.gather(model)
    state = SharedState(values=start.copy())
    privacy = study.privacy
    deviation = _calibrated(study) * privacy.clip_norm if noise else 0.0
    divisor = privacy.sample_rate * privacy.nominal_records
    for _ in range(study.training.rounds):
        support = _support(study, base, state, compress=compress)
        base.layout.load(model, state.values)
        total = np.zeros(len(support))
        for rows in ground.banks:
            batch = poisson_sample(len(rows.labels), privacy.sample_rate, random.bytes)
            clip_norm = privacy.clip_norm if noise else None
            total += summed_gradient(model, base.layout, rows, batch, support=support, clip_norm=clip_norm)
            total += random.normal(len(support)) * deviation
        state.apply(support, total / (divisor * len(ground.banks)), study, bytes(32))
    return result_of(start, state.values, study) if noise else state.values


def pooled_rows(ground: Ground) -> Rows:
    """Put every bank's rows in one place."""
    return Rows(
        features=torch.cat([rows.features for rows in ground.banks]),
        labels=torch.cat([rows.labels for rows in ground.banks]),
    )


def _calibrated(study: Study) -> float:
    return calibrate(
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        sample_rate=study.privacy.sample_rate,
        steps=study.training.rounds * study.training.local_steps,
    )


def _support(study: Study, base: Base, state: SharedState, *, compress: bool) -> NDArray[np.int64]:
    if not compress:
        return np.arange(base.layout.size)
    packing = layout_for(study.aggregation.participants, study.compression.bits)
    return select_support(
        state.scores(base.layout.positions(study.compression.always)),
        kept_entries(base.layout.size, study.compression.kept_share, packing),
        study.compression.explore_share,
        group_key=bytes(32),
        transcript=bytes(32),
        round_index=state.round + 1,
    )


def _split(
    labels: NDArray[np.float32], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal a stratified share of the rows to validation, at least one of each class."""
    validation = []
    for label in (0.0, 1.0):
        rows = random.permutation(np.flatnonzero(labels == label))
        validation.append(rows[: max(1, round(VALIDATION_SHARE * len(rows)))])
    held = np.sort(np.concatenate(validation))
    return np.setdiff1d(np.arange(len(labels)), held), held


def _loss(model: FeatureTransformer, rows: Rows, index: NDArray[np.int64]) -> float:
    outputs = torch.from_numpy(logits(model, rows.features[index]))
    return float(torch.nn.functional.binary_cross_entropy_with_logits(outputs, rows.labels[index].double()))
