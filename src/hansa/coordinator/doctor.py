"""`hansa coordinator doctor`: every check of a coordinator, in the order in which they run (docs/operations.md)."""

from hansa.coordinator.doctor_home import HOME_CHECKS
from hansa.coordinator.doctor_members import MEMBER_CHECKS
from hansa.coordinator.doctor_services import SERVICE_CHECKS
from hansa.coordinator.examination import Examination
from hansa.federation.checks import Check

COORDINATOR_CHECKS: tuple[Check[Examination], ...] = (*HOME_CHECKS, *MEMBER_CHECKS, *SERVICE_CHECKS)
