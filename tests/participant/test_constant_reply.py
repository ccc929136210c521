"""What the coordinator learns of a failure: that there was one."""

import pytest
from flwr.app import ConfigRecord, RecordDict

from hansa import errors

AT = {"round": 1, "attempt": 0}


def records(house):
    """The reply of bank-1 to a request, as the coordinator has it; and the reason that the member kept."""

    def ask(kind, **changes):
        reply = house.send("bank-1", kind, RecordDict({"request": ConfigRecord(AT | changes)}))
        return dict(reply.content.config_records["reply"]), house.errors["bank-1"][-1].code

    return ask


def test_every_failure_that_is_no_refusal_is_the_same_reply(house, monkeypatch):
    ask = records(house)
    junk = [b"signed"]
    found = [
        ask("query.vote", joins=junk, deal=junk),  # before it joined
        ask("query.join", round="1"),
        ask("query.answer"),  # before the epoch
    ]
    packages, shares = house.begin()
    own = shares["bank-1"]
    found += [
        ask("train", packages=packages[:2], shares=own[:2]),
        ask("train", packages=packages, shares=own[:3]),
        ask("train", packages=[*packages[:3], bytes(1 << 20)], shares=own),
        ask("train", packages=packages, shares=[own[0], own[2], own[1], own[3]]),
        ask("query.unmask", releases=junk),
        ask("query.close", results=junk),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(type(house.nodes["bank-1"]), "join", lambda *_: 1 / 0)
        found.append(ask("query.join"))
    replies, reasons = zip(*found, strict=True)
    assert all(reply == {"error": "aborted"} for reply in replies)
    assert len(set(reasons)) >= 6  # the member's own log tells them apart
    assert errors.InternalFailure.code in reasons


def test_a_failure_leaves_nothing_but_the_one_word(house):
    ask = records(house)
    ask("query.vote", joins=[b"signed"], deal=[b"signed"])
    direction, data = house.grid_bytes[-1]
    (reason,) = house.errors["bank-1"]
    assert direction == "from node"
    assert b"aborted" in data
    for words in (reason.code, reason.message, reason.hint, type(reason).__name__):
        assert words.encode() not in data


@pytest.mark.parametrize("kind", ["query.open", "query.catch_up"])
def test_a_step_of_the_other_mode_is_no_other_reply(house, kind):
    ask = records(house)
    lists = {"packages": [b"signed"], "releases": [b"signed"]} if kind == "query.catch_up" else {}
    assert ask(kind, **lists)[0] == {"error": "aborted"}
