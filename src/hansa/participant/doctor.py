"""`hansa participant doctor`: every check of a participant, in the order in which they run (docs/operations.md)."""

from hansa.federation.checks import Check
from hansa.participant.doctor_data import DATA_CHECKS
from hansa.participant.doctor_keys import KEY_CHECKS
from hansa.participant.doctor_machine import MACHINE_CHECKS
from hansa.participant.doctor_network import NETWORK_CHECKS
from hansa.participant.examination import Examination

PARTICIPANT_CHECKS: tuple[Check[Examination], ...] = (
    *KEY_CHECKS,
    *NETWORK_CHECKS,
    *DATA_CHECKS,
    *MACHINE_CHECKS,
)
