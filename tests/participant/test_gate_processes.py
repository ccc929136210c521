"""Two studies, each in a process of its own, race for one data set: together they pass no limit of its policy."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hansa.privacy.accounting import epsilon_of
from hansa.privacy.budget import Budget
from hansa.privacy.ledger import LedgerOwner

DELTA = 1e-5
PROGRAM = """
import json, sys
from pathlib import Path
from hansa.errors import BudgetExhausted
from hansa.participant.policy import Policy
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner
from hansa.secure_agg.identity import Identity

path, study, limits = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
identity = Identity.load(bytes([1]) * 32)
owner = LedgerOwner(
    participant="bank-1", public_key=identity.public, data=b"d" * 32, sign=identity.sign, now=lambda: 1.8e9
)
policy = Policy(studies=frozenset(), **limits)
budget = Budget(Path(path), epsilon_limit=policy.epsilon_limit, delta=1e-5, owner=owner)
budget.epsilon(Spending(study=study, round=0, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=1))
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(1, 9):
    spending = Spending(study=study, round=number, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=1)
    try:
        budget.reserve(spending, gate=policy.verify_round)
        budget.commit(spending)
        won += 1
    except BudgetExhausted as error:
        print(won, error.message.rpartition(", above ")[2], flush=True)
        break
"""


def epsilon(steps: int) -> float:
    return epsilon_of(noise_multiplier=1.0, sample_rate=0.2, steps=steps, delta=DELTA)


@pytest.mark.parametrize("limit", ["epsilon_limit", "epsilon_per_month", "epsilon_per_study"])
def test_two_studies_that_race_pass_no_limit_together(
    tmp_path: Path, ledger_owner: Callable[..., LedgerOwner], limit: str
) -> None:
    limits = {"epsilon_limit": 100.0} | {limit: epsilon(5)}
    ledger = tmp_path / "ledger.jsonl"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ledger), study * 64, json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for study in "ab"
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found = [racer.communicate(timeout=60)[0].split(maxsplit=1) for racer in racers]
    rounds = [int(won) for won, _ in found]
    budget = Budget(ledger, epsilon_limit=100.0, delta=DELTA, owner=ledger_owner())
    assert rounds == [5, 5] if limit == "epsilon_per_study" else sum(rounds) == 5
    assert budget.epsilon() == epsilon(sum(rounds))
    assert len(budget.spent()) == 1
    word = {"epsilon_limit": "for ever", "epsilon_per_month": "month", "epsilon_per_study": "one study"}
    assert all(word[limit] in reason for _, reason in found)
