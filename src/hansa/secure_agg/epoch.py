"""Epoch set-up: all members agree on who they are, under which terms, and on two common keys.

    E1 join    each member signs fresh keys
    E2 deal    the dealer makes HE key and group key and seals them to every member
    E3 vote    each member checks all of it and signs the manifest that it computed
    E4 enter   all n votes over the same manifest; only then round-key packages

The dealer of epoch e is member e mod n of the sorted roster. A dealer learns no more than any member: both keys
are common. The identity keys are the pinned roster's, never the coordinator's word; where the roster pins an
authority too, each member shows a certificate of it for its key.
"""

import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import cbor2
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa import labels
from hansa.errors import (
    BadSignature,
    CertificateRejected,
    CohortMismatch,
    DuplicateMember,
    MessageTooLarge,
    OutOfOrder,
    OwnKeyMismatch,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.certificates import RevocationList, authority_hash, utc_now
from hansa.secure_agg.cohort import counter_bytes, open_each
from hansa.secure_agg.dealing import open_keys, seal_keys
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.identity import Identity, RandomBytes, Roster
from hansa.secure_agg.messages import GROUP_KEY_BYTES, B, Deal, Join, Vote, open_signed, sign_message
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.sealing import MemberKey, pair_key
from hansa.secure_agg.store import Store

_EPOCH, _JOINING, _DEALT, _VOTED = "epoch", "joining", "dealt", "voted"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epoch:
    """What a member holds for one epoch.

    Attributes:
        participant: Own id.
        roster: The pinned roster.
        terms: Mode, threshold, layout.
        number: Number of the epoch.
        manifest_hash: 32 bytes, signed by every member.
        he_key: Common encryption key; secret.
        group_key: 32 bytes common to the members; secret.
        pair_keys: Channel key with each other member; secret.
    """

    participant: str
    roster: Roster
    terms: Terms
    number: int
    manifest_hash: bytes
    he_key: HeKey
    group_key: bytes
    pair_keys: Mapping[str, bytes]

    def index(self, participant: str) -> int:
        """Return a member's place in the roster, from 0."""
        return self.roster.participants.index(participant)

    def __repr__(self) -> str:
        return f"Epoch({self.participant!r}, number {self.number}, {self.terms.mode})"

    def save(self, store: Store) -> None:
        """Write the epoch to a store, all its secrets included."""
        record = {
            "session": self.roster.session_id,
            "terms": self.terms.hash,
            "number": self.number,
            "manifest": self.manifest_hash,
            "he_key": self.he_key.export(),
            "group_key": self.group_key,
            "pair_keys": dict(self.pair_keys),
        }
        store.put(_EPOCH, cbor2.dumps(record))


def load_epoch(store: Store, participant: str, roster: Roster, terms: Terms) -> Epoch | None:
    """Read the epoch that a store holds, or return None.

    Raises:
        WrongSession: The store belongs to another session or to other terms.
    """
    data = store.get(_EPOCH)
    if data is None:
        return None
    record = cbor2.loads(data)
    if (record["session"], record["terms"]) != (roster.session_id, terms.hash):
        raise WrongSession("the store belongs to another session or to other terms")
    return Epoch(
        participant=participant,
        roster=roster,
        terms=terms,
        number=record["number"],
        manifest_hash=record["manifest"],
        he_key=HeKey.load(record["he_key"]),
        group_key=record["group_key"],
        pair_keys=record["pair_keys"],
    )


def manifest_hash(roster: Roster, epoch: int, terms: Terms, joins: Mapping[str, Join], deal: Deal) -> bytes:
    """Return the hash of session, study, epoch, authority, terms, keys' commitments and (id, identity, keys) by id."""
    members = []
    for participant, join in sorted(joins.items()):
        members += [
            participant.encode(), roster.public_key(participant), join.kem_key, join.channel_key
        ]  # fmt: skip
    head = (
        roster.session_id,
        roster.study_id,
        counter_bytes(epoch),
        authority_hash(roster.authority),
        terms.hash,
    )
    return labelled_hash(labels.MANIFEST, *head, deal.he_key_id, deal.group_commitment, *members)


def dealer_of(roster: Roster, epoch: int) -> str:
    """Return the dealer of an epoch: the members in turn, from the lowest id."""
    return roster.participants[epoch % len(roster.participants)]


class EpochSetup:
    """One member's steps into an epoch. After a restart a new object on the same store continues.

    Args:
        participant: Own id.
        identity: Own signing key.
        roster: The pinned roster.
        terms: Own configuration; must be everybody's.
        epoch: Number of the new epoch, above that of the store.
        store: Durable storage.
        random_bytes: Source of keys; the operating system outside of tests.
        certificate: Own certificate (DER) of the roster's authority; empty where it has none.
        now: Clock, with its zone.
        revoked: The authority's revocation list, where the consortium uses one.

    Raises:
        OwnKeyMismatch: The roster holds another identity key under this id.
        CohortMismatch: The terms are for another number of members.
        WrongEpoch: The store has this epoch or a later one.

    Guarantees:
        - A member votes for one manifest an epoch; its join keys are on the store before they are shown.
        - With an authority no keys are dealt and no vote is cast before every member's certificate was checked.
        - The epoch is entered only with the votes of all members over the same manifest.
        - repr() shows no secret.
    """

    def __init__(
        self,
        *,
        participant: str,
        identity: Identity,
        roster: Roster,
        terms: Terms,
        epoch: int,
        store: Store,
        random_bytes: RandomBytes = os.urandom,
        certificate: bytes = b"",
        now: Callable[[], datetime] = utc_now,
        revoked: RevocationList | None = None,
    ) -> None:
        if not hmac.compare_digest(roster.public_key(participant), identity.public):
            raise OwnKeyMismatch(f"the roster holds another identity key for {participant!r}")
        if terms.participants != len(roster.members):
            raise CohortMismatch(f"terms for {terms.participants} do not fit {len(roster.members)} members")
        current = load_epoch(store, participant, roster, terms)
        if current is not None and current.number >= epoch:
            raise WrongEpoch(f"epoch {epoch} is over, the store holds epoch {current.number}")
        self._participant, self._identity, self._roster, self._terms = participant, identity, roster, terms
        self._number, self._store, self._random_bytes = epoch, store, random_bytes
        self._certificate, self._now, self._revoked = certificate, now, revoked
        self._entering: Epoch | None = None

    def __repr__(self) -> str:
        return f"EpochSetup({self._participant!r}, epoch {self._number})"

    def _sign(self, kind: type[B], **values: bytes) -> bytes:
        body = kind(
            session=self._roster.session_id,
            study=self._roster.study_id,
            epoch=self._number,
            sender=self._participant,
            **values,
        )
        return sign_message(self._identity, body)

    def _stored(self, key: str) -> dict[str, bytes] | None:
        """Return a record of this very epoch set-up."""
        data = self._store.get(key)
        record = None if data is None else cbor2.loads(data)
        return record["values"] if record is not None and record["epoch"] == self._number else None

    def _keep(self, key: str, **values: bytes) -> None:
        self._store.put(key, cbor2.dumps({"epoch": self._number, "values": values}))

    @property
    def is_dealer(self) -> bool:
        """Whether this member deals the keys of this epoch."""
        return dealer_of(self._roster, self._number) == self._participant

    def join(self) -> bytes:
        """Step E1: return the signed Join; the same bytes when called again, also after a restart.

        Raises:
            CertificateRejected: The own certificate would be refused by the others; nothing was made.
        """
        self._verify_own_certificate()
        stored = self._stored(_JOINING)
        if stored is None:
            member = MemberKey.generate(self._random_bytes)
            channel = X25519PrivateKey.from_private_bytes(self._random_bytes(32))
            signed = self._sign(
                Join,
                kem_key=member.public,
                channel_key=channel.public_key().public_bytes_raw(),
                certificate=self._certificate,
            )
            stored = {"member": member.secret, "channel": channel.private_bytes_raw(), "signed": signed}
            self._keep(_JOINING, **stored)
        return stored["signed"]

    def deal(self, joins: Sequence[bytes]) -> bytes:
        """Step E2: make the common keys and seal them; the same bytes when called again.

        Args:
            joins: The signed Join of every member, untrusted.

        Raises:
            OutOfOrder: Another member deals in this epoch, or this one has not joined.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch, DuplicateMember,
            CohortMismatch, OwnKeyMismatch, CertificateRejected:
                See `vote`.
        """
        if not self.is_dealer:
            dealer = dealer_of(self._roster, self._number)
            raise OutOfOrder(f"{dealer!r} deals in epoch {self._number}, not {self._participant!r}")
        opened = self._open_joins(joins)
        stored = self._stored(_DEALT)
        if stored is None:
            he_key, group_key = HeKey.generate(), self._random_bytes(GROUP_KEY_BYTES)
            signed = self._sign(Deal, **seal_keys(self._roster, self._number, opened, he_key, group_key))
            stored = {"signed": signed}
            self._keep(_DEALT, **stored)
        return stored["signed"]

    def vote(self, joins: Sequence[bytes], deal: bytes) -> bytes:
        """Step E3: check joins and deal, and sign the manifest.

        Args:
            joins: The signed Join of every member, own one included; untrusted.
            deal: The signed Deal; untrusted.

        Returns:
            The signed Vote.

        Raises:
            OutOfOrder: This member has not joined.
            MessageTooLarge, MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See
                `messages.open_signed`; UnknownSender also for a deal that is not the dealer's.
            DuplicateMember: A member joins twice.
            CohortMismatch: The joins are not those of exactly the pinned roster, or this member has voted for
                another manifest in this epoch.
            OwnKeyMismatch: The join under the own name is not the own one.
            CertificateRejected: A member shows no valid certificate of the pinned authority, or one without an authority.
            HeKeyMismatch: The sealed keys do not open, or are not those committed to.
        """
        opened = self._open_joins(joins)
        dealt = open_signed(deal, Deal, self._roster, self._number)
        if dealt.sender != dealer_of(self._roster, self._number):
            raise BadSignature(f"{dealt.sender!r} dealt keys; it is not the dealer of epoch {self._number}")
        member = MemberKey(self._joining()["member"])
        group_key, he_key = open_keys(dealt, self._roster, self._participant, member)
        manifest = manifest_hash(self._roster, self._number, self._terms, opened, dealt)
        voted = self._stored(_VOTED)
        if voted is not None and voted["manifest"] != manifest:
            raise CohortMismatch(f"this member has voted for another manifest of epoch {self._number}")
        self._keep(_VOTED, manifest=manifest)
        channel = X25519PrivateKey.from_private_bytes(self._joining()["channel"])
        self._entering = Epoch(
            participant=self._participant,
            roster=self._roster,
            terms=self._terms,
            number=self._number,
            manifest_hash=manifest,
            he_key=he_key,
            group_key=group_key,
            pair_keys={
                name: pair_key(channel, join.channel_key, group_key, manifest, name)
                for name, join in opened.items()
                if name != self._participant
            },
        )
        return self._sign(Vote, manifest_hash=manifest)

    def enter(self, votes: Sequence[bytes]) -> Epoch:
        """Step E4: check that every member signed the same manifest, and enter the epoch.

        Args:
            votes: The signed Vote of every member, untrusted.

        Raises:
            OutOfOrder: This object has not voted.
            BadSignature: A member signed another manifest: it was shown other members, keys or terms.
            CohortMismatch: A vote is missing.
            MalformedMessage, UnknownSender, WrongSession, WrongEpoch, DuplicateMember: As for `vote`.
        """
        if self._entering is None:
            raise OutOfOrder(f"epoch {self._number} was not voted for")
        opened = open_each(votes, Vote, self._roster, self._number)
        self._verify_complete(opened, Vote.TYPE)
        for name, (body, _) in opened.items():
            if not hmac.compare_digest(body.manifest_hash, self._entering.manifest_hash):
                raise BadSignature(f"{name!r} has signed another manifest of epoch {self._number}")
        self._entering.save(self._store)
        for key in (_JOINING, _DEALT, _VOTED):  # private join keys go: old traffic cannot be opened again
            self._store.delete(key)
        return self._entering

    def _verify_own_certificate(self) -> None:
        try:
            self._roster.verify_certificate(self._participant, self._certificate, self._now(), self._revoked)
        except (CertificateRejected, MessageTooLarge) as error:
            hint = "send the authority a new request for the same key, and install the certificate before joining"
            raise CertificateRejected(f"cannot join: {error.message}", hint=hint) from error

    def _joining(self) -> dict[str, bytes]:
        stored = self._stored(_JOINING)
        if stored is None:
            raise OutOfOrder(f"{self._participant!r} has not joined epoch {self._number}")
        return stored

    def _verify_complete(self, found: Mapping[str, object], what: str) -> None:
        missing = [name for name in self._roster.participants if name not in found]
        if missing:
            raise CohortMismatch(f"no {what} of {', '.join(missing)}; an epoch needs the whole roster")

    def _open_joins(self, joins: Sequence[bytes]) -> dict[str, Join]:
        own = self._joining()["signed"]
        found = open_each(joins, Join, self._roster, self._number)
        self._verify_complete(found, Join.TYPE)
        if not hmac.compare_digest(found[self._participant][1], own):
            raise OwnKeyMismatch(f"the join shown for {self._participant!r} is not the one that it made")
        for name, (body, _) in found.items():
            self._roster.verify_certificate(name, body.certificate, self._now(), self._revoked)
        for key in ("kem_key", "channel_key"):
            if len({getattr(body, key) for body, _ in found.values()}) != len(found):
                raise DuplicateMember(f"two members join with the same {key}")
        return {name: body for name, (body, _) in found.items()}
