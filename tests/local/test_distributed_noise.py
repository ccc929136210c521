"""A whole study with distributed noise in worker processes: equal states, the noise that was promised, ledgers that hold."""

import numpy as np
import pytest

from hansa.local import LocalConsortium
from hansa.local_seats import Member
from hansa.participant.policy import Policy
from hansa.privacy.accounting import calibrate
from hansa.privacy.audit import audit_folder
from hansa.study import parse_study


@pytest.fixture
def shared_study(tiny):
    text = tiny.TINY_STUDY.replace(
        "[privacy]", '[privacy]\nmode = "distributed"\nnoise_contributors = 3\ncolluders = 1'
    )
    return parse_study(text.replace("[compression]", "[compression]\nbits = 20"))


@pytest.mark.parametrize("drop", [0, 1])
def test_a_study_with_distributed_noise_ends_in_equal_states_and_sound_ledgers(
    shared_study, tiny, tiny_bases, tiny_tables, drop
):
    base, privacy = tiny_bases(shared_study), shared_study.privacy
    target = calibrate(epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=privacy.sample_rate, steps=2)
    policy = Policy(studies=frozenset({shared_study.id}), epsilon_limit=8.0, noise_contributors_least=3)
    members = [Member(name=name, rows=tiny_tables[name].rows, policy=policy) for name in tiny.NAMES]
    summaries = []
    with LocalConsortium(
        shared_study, members, make_model=base.model, layout=base.layout, workers=2, drop=drop
    ) as consortium:
        consortium.run(summaries.append)
        found = consortium.inspect_all()  # raises where two differ
        audits = audit_folder(consortium._directory)
    assert [summary.round for summary in summaries] == [1, 2]
    assert len({one.values.tobytes() for one in found.values()}) == 1
    start = base.layout.gather(base.model())
    moved = found["bank-1"].values != start
    assert np.count_nonzero(moved) > 0.9 * start.size
    assert len(audits) == (4 if drop == 0 else len(audits))
    for audit in audits:
        assert audit.error is None
        name = audit.audit.opening.participant
        assert audit.audit.epsilon == pytest.approx(found[name].epsilon, rel=1e-9)
        assert 0 < audit.audit.epsilon <= privacy.epsilon
        for reservation in audit.audit.reservations:
            assert reservation.spending.noise_multiplier >= target
            assert reservation.counted.contributors >= 3
            if drop == 0:
                assert reservation.counted.contributors == 4
                assert (
                    reservation.counted.noise_multiplier > target * 1.2
                )  # three honest shares in place of two
