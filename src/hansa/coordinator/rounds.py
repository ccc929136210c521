"""The round loop in strict mode: every member answers in every exchange, or the study stops.

    1 advertise  once before the first round; afterwards the next round's keys come with `open`'s exchange
    2 train      relay all round keys; members train and upload to the aggregator
    3 open       members fetch and open the sum and confirm their new state
    4 close      relay all confirmations; members check each other

The loop relays signed messages and checks signatures; it holds no model, no key and no update.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.typing import ConfigRecordValues
from flwr.serverapp import Grid

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import MalformedMessage, ParticipantLost
from hansa.secure_agg.agreement import verify_results
from hansa.secure_agg.identity import Roster


def _answer(reply: Message, member: str, expected: str) -> bytes:
    """Take the one expected value out of a reply."""
    if reply.has_error():
        raise ParticipantLost(f"{member} failed with Flower error {reply.error.code}")
    record = reply.content.config_records.get("reply")
    if record is None:
        raise MalformedMessage(f"the reply of {member} holds no record 'reply'")
    if "error" in record:
        raise ParticipantLost(f"{member} refused: {str(record['error'])[:64]}")
    value = record.get(expected)
    if expected == "closed" and value is True:
        return b""
    if not isinstance(value, bytes) or len(record) != 1:
        raise MalformedMessage(f"the reply of {member} holds no {expected}")
    return value
