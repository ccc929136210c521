"""What the coordinator holds and sees: its whole object graph, and every byte that crossed to it."""

import functools
import gc
import subprocess
import sys
import types

import cbor2
import numpy as np
import pytest
import torch
from flwr.serverapp import Grid
from tenseal import sealapi
from torch import nn

import hansa.coordinator.app as app_module
import hansa.participant.local_update as node_module
from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.rounds import RoundLoop
from hansa.local_grid import from_bytes
from hansa.participant.node import ParticipantNode
from hansa.participant.shared_state import SharedState
from hansa.participant.trainer import Rows
from hansa.secure_agg import unmasking, uploading
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.attempt import Attempt
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.epoch import Epoch, EpochSetup
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.packages import OwnPackage
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.store import MemoryStore
from hansa.secure_agg.unmasking import Opened

SECRET_TYPES = (
    HeKey,
    Identity,
    ParticipantNode,
    Epoch,
    EpochSetup,
    RoundMachine,
    Attempt,
    OwnPackage,
    Opened,
    MemoryStore,
    SharedState,
    Rows,
    nn.Module,
    torch.Tensor,
    np.ndarray,
    sealapi.SecretKey,
    sealapi.KeyGenerator,
    sealapi.Encryptor,
    sealapi.Decryptor,
)


def reachable(roots, stop=()):
    """Every object that the roots hold, directly or not: attributes, slots, closures, defaults, containers.

    Not followed: modules and classes, which everybody can import, and the objects in `stop`.
    """
    stopped = {id(thing) for thing in stop}
    stopped |= {
        id(vars(module)) for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)
    }
    found, waiting = {}, list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or id(thing) in stopped or isinstance(thing, types.ModuleType | type):
            continue
        found[id(thing)] = thing
        waiting.extend(gc.get_referents(thing))
        waiting.extend(getattr(thing, "__dict__", {}).values())
        slots = {slot for kind in type(thing).__mro__ for slot in getattr(kind, "__slots__", ())}
        waiting.extend(getattr(thing, slot, None) for slot in slots if isinstance(slot, str))
        if isinstance(thing, types.FunctionType):
            waiting.extend(cell.cell_contents for cell in thing.__closure__ or ())
        if isinstance(thing, functools.partial):
            waiting.extend([thing.func, thing.args, thing.keywords])
    return list(found.values())


def windows(data, width=32, most=24):
    """Pieces of a secret that are unmistakable: `width` bytes of which at least 12 differ."""
    starts = range(0, len(data) - width + 1, max(width, len(data) // (8 * most)))
    pieces = [data[start : start + width] for start in starts]
    return [piece for piece in pieces if len(set(piece)) >= 12][:most] or [data]


class Secrets:
    """Byte strings that must not reach the coordinator, by name; filled while the study runs."""

    def __init__(self, house, tables, monkeypatch):
        self.pieces = {}
        for name, identity in house.identities.items():
            self.add(f"identity of {name}", identity.export())
        for name in house.nodes:
            table = tables[name]
            for row in range(0, len(table.labels), 8):
                self.add("raw row", table.numeric[row].tobytes())
                self.add("feature row", table.rows.features[row].numpy().tobytes(), width=None)
            for form in (np.float64, np.float32, np.int8):
                self.add("labels", table.labels.astype(form).tobytes(), width=None)
            self.note_state(house, name)
        self._note_updates(monkeypatch)
        self._note_stores(monkeypatch)
        self._note_masks(monkeypatch)

    def add(self, what, data, width=32):
        self.pieces.setdefault(what, set()).update([data] if width is None else windows(data, width))

    def note_state(self, house, name):
        state = house.nodes[name].state
        self.add("state digest", state.digest(house.study.id))
        for vector in (state.values, state.first, state.second):
            if vector.any():
                self.add("model state", vector.tobytes())
                self.add("model state", vector.astype(np.float32).tobytes())

    def _note_updates(self, monkeypatch):
        quantise, dequantise = node_module.quantise, node_module.dequantise_sum

        def note_update(values, *rest):
            levels = quantise(values, *rest)
            self.add("float update", values.tobytes())
            self.add("float update", values.astype(np.float32).tobytes())
            for form in (np.int64, np.int8):
                self.add("levels", levels.astype(form).tobytes(), width=64)
            return levels

        def note_sum(total, *rest):
            mean = dequantise(total, *rest)
            self.add("sum", total.tobytes(), width=64)
            self.add("sum", mean.tobytes())
            return mean

        monkeypatch.setattr(node_module, "quantise", note_update)
        monkeypatch.setattr(node_module, "dequantise_sum", note_sum)

    def _note_stores(self, monkeypatch):
        """What a member's machines keep: noted when it is written, for most of it is deleted soon."""
        put = MemoryStore.put

        def note_and_put(store, key, value):
            put(store, key, value)
            if key.startswith("package/"):
                package = OwnPackage.decode(value)
                self.add("mask key", package.mask_private)
                self.add("self-mask seed", package.seed)
                self._add_shares(package.own_shares)
                return
            record = cbor2.loads(value)
            if key == "epoch":
                self.add("encryption key", record["he_key"])
                self.add("group key", record["group_key"])
                for pair_key in record["pair_keys"].values():
                    self.add("pair key", pair_key)
            elif key == "joining":
                self.add("join keys", record["values"]["member"])
                self.add("join keys", record["values"]["channel"])
            elif key == "attempt":
                for shares in record["shares"].values():
                    self._add_shares(shares)

        monkeypatch.setattr(MemoryStore, "put", note_and_put)

    def _add_shares(self, shares):
        for start in range(0, len(shares), 32):
            self.add("share", shares[start : start + 32])

    def _note_masks(self, monkeypatch):
        for module in (uploading, unmasking):

            def note_and_mask(seeds, size, net_mask=module.net_mask):
                for _, seed in seeds:
                    self.add("mask seed", seed)
                mask = net_mask(seeds, size)
                self.add("mask", mask.tobytes())
                return mask

            monkeypatch.setattr(module, "net_mask", note_and_mask)

    def seen_in(self, data, only=None):
        return sorted(
            what
            for what, pieces in self.pieces.items()
            if only in (None, what) and any(piece in data for piece in pieces)
        )


PACKAGES = {"mask key", "self-mask seed", "share", "mask seed", "mask", "pair key", "join keys"}


def drop_answers(house, name, kind):
    """Let every answer of a member to one kind of message be lost before it was asked."""
    node = house.node_ids[name]
    original = house.grid._handlers[node]

    def handler(data):
        if from_bytes(data).metadata.message_type == kind:
            raise ConnectionError("lost")
        return original(data)

    house.grid._handlers[node] = handler


@pytest.fixture
def secrets(house, tiny_tables, monkeypatch):
    return Secrets(house, tiny_tables, monkeypatch)


def leaves(things):
    """The bytes and texts among objects, joined."""
    parts = [bytes(thing) for thing in things if isinstance(thing, bytes | bytearray | memoryview)]
    parts += [thing.encode(errors="replace") for thing in things if isinstance(thing, str)]
    return b"\x00|\x00".join(parts)


def test_no_object_of_the_coordinator_is_or_holds_a_secret(house, secrets, monkeypatch):
    loops, graphs = [], []

    class NotedLoop(RoundLoop):
        def __init__(self, *values, **named):
            super().__init__(*values, **named)
            loops.append(self)

    def on_round(_):
        for name in house.nodes:
            secrets.note_state(house, name)
        # The loop's own frame too: what it relays stands in local variables.
        frame = sys._getframe(1)
        assert frame.f_code is RoundLoop.run.__code__
        roots = [app, *loops, house.service, house.service._running, *frame.f_locals.values()]
        # The grid stands for the network, and this function for whoever runs the test.
        graphs.append(reachable(roots, stop=[house.grid, on_round]))

    monkeypatch.setattr(app_module, "RoundLoop", NotedLoop)
    drop_answers(house, "bank-4", "train")
    app = house.server_app(on_round)
    app(house.grid, None)
    assert len(graphs) == 2
    # The certificate of a round with a dropout was there to be found.
    assert secrets.pieces.keys() >= PACKAGES
    assert all(set(loop._state.certificates) <= {2} for loop in loops)
    for graph in graphs:
        kinds = {type(thing) for thing in graph}
        # The walk has seen what it had to see, and the bytes that the coordinator does hold.
        assert {NotedLoop, AggregationService, RoundAggregator, Roster, sealapi.Ciphertext} <= kinds
        assert house.roster.members[0][1] in leaves(graph)
        assert not [thing for thing in graph if isinstance(thing, (*SECRET_TYPES, Grid))]
        assert secrets.seen_in(leaves(graph)) == []


def test_the_same_walk_finds_every_secret_at_a_participant(house, secrets, tiny_tables):
    """The control of the test above: it would notice."""
    house.close()
    things = reachable([house.nodes["bank-1"], tiny_tables["bank-1"]])
    kinds = {type(thing) for thing in things}
    assert {HeKey, Identity, Epoch, RoundMachine, ParticipantNode, SharedState, Rows, np.ndarray} <= kinds
    tensors = [thing.detach().numpy() for thing in things if isinstance(thing, torch.Tensor)]
    arrays = [thing.tobytes() for thing in [*things, *tensors] if isinstance(thing, np.ndarray)]
    own = leaves(things) + b"|".join(arrays)
    found = set(secrets.seen_in(own))
    assert {"encryption key", "group key", "pair key", "raw row", "feature row", "labels"} <= found
    # Of the next round's package; those of this round are deleted.
    assert {"mask key", "self-mask seed", "share"} <= found


@pytest.mark.parametrize("lost", [None, "train", "query.unmask"])
def test_no_byte_that_reached_the_coordinator_shows_a_secret(house, secrets, tiny, lost):
    if lost is not None:
        drop_answers(house, "bank-4", lost)

    def on_round(_):
        for name in house.nodes:
            secrets.note_state(house, name)

    house.run(on_round)
    uploads = [part for wire in house.wires.values() for part in wire.sent]
    downloads = [part for wire in house.wires.values() for part in wire.received]
    crossed = b"|".join([*(data for _, data in house.grid_bytes), *uploads, *downloads])
    if lost is None:
        # All of it was seen: 13 messages of the epoch, 4 members, 4 exchanges, 2 rounds, and back; a header and a
        # ciphertext each.
        assert len(house.grid_bytes) == (13 + 4 * 4 * 2) * 2
        assert len(uploads) == 4 * 2 * 2
        assert len(downloads) == 4 * 2 * (4 + 1)
    assert all(part in crossed for part in uploads)
    assert {
        "encryption key",
        "group key",
        "state digest",
        "levels",
        "float update",
        "model state",
        "sum",
        "feature row",
        "raw row",
        "labels",
        *PACKAGES,
        *(f"identity of {name}" for name in tiny.NAMES),
    } == set(secrets.pieces)
    assert secrets.seen_in(crossed) == []
    # The search would notice: each secret, put into the middle, is found.
    for what, pieces in secrets.pieces.items():
        half = len(crossed) // 2
        for piece in list(pieces)[:2]:
            assert what in secrets.seen_in(crossed[:half] + piece + crossed[half:], what)


def test_ciphertexts_and_private_keys_never_ride_in_flower_messages(house):
    house.run()
    kinds = [(from_bytes(data).metadata.message_type, len(data)) for _, data in house.grid_bytes]
    # The deal holds the HE key, sealed under the group key; joins and envelopes hold post-quantum keys. What is
    # inside is searched for above.
    large = {"query.join", "query.deal", "query.vote"}
    assert (
        max(size for kind, size in kinds if kind not in large) < 8192
    )  # signed messages, Flower's own fields
    for wire in house.wires.values():
        for part in wire.sent:
            if len(part) > 4096:
                assert not any(part[100:164] in data for _, data in house.grid_bytes)


def test_the_coordinators_room_imports_no_model_no_noise_and_no_participant():
    """In a fresh process, so that what the tests import does not count."""
    program = (
        "import sys, hansa.coordinator.app, hansa.coordinator.aggregator\n"
        "found = [m for m in sys.modules if m.startswith(('hansa.models', 'hansa.kernels', 'hansa.privacy',"
        " 'hansa.participant', 'hansa.study', 'torch'))]\n"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
