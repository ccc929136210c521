"""Results of finished rounds: whole or not there, and bounded whatever a member that stays away does."""

import errno
import gc
import os

import pytest

from hansa.coordinator import results
from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.results import RoundResults
from hansa.errors import ResultExpired, StaleRound, StoreDamaged, StoreNotWritable
from hansa.local_grid import from_bytes
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES

SUMS = [bytes([place]) * EXPANDED_BYTES for place in range(3)]


def seal_of(headers, sums=SUMS):
    def seal(keep):
        for total in sums:
            keep(total)
        return headers

    return seal


@pytest.fixture
def kept(tmp_path):
    return RoundResults(tmp_path, rounds=3)


def test_a_result_is_what_was_sealed_and_its_file_holds_ciphertexts_only(kept, tmp_path):
    kept.keep((1, 0), seal_of([b"header a", b"header b"]))
    assert kept.headers((1, 0)) == [b"header a", b"header b"]
    assert list(kept.ciphertexts((1, 0))) == list(kept.ciphertexts((1, 0))) == SUMS
    (file,) = tmp_path.glob("*.aggregate")
    assert file.read_bytes() == b"".join(SUMS)


def test_made_anew_on_the_same_folder_it_has_the_same_results(kept, tmp_path):
    kept.keep((1, 0), seal_of([b"header a", b"header b"]))
    kept.keep((2, 3), seal_of([b"header c"]))
    (tmp_path / "round-3-attempt-0.aggregate").write_bytes(b"its headers were never written")
    (tmp_path / "round-4-attempt-0.part").write_bytes(b"half")
    (tmp_path / "note.txt").write_bytes(b"not ours")
    again = RoundResults(tmp_path, rounds=3)
    assert len(again) == 2
    assert again.headers((1, 0)) == [b"header a", b"header b"]
    assert list(again.ciphertexts((2, 3))) == SUMS
    with pytest.raises(StaleRound):
        again.headers((3, 0))
    assert {file.name for file in tmp_path.iterdir()} == {
        "note.txt", "round-1-attempt-0.aggregate", "round-1-attempt-0.headers",
        "round-2-attempt-3.aggregate", "round-2-attempt-3.headers",
    }  # fmt: skip


@pytest.mark.parametrize("spoilt", [b"", b"\xff\xff", b"\x01", b"\x81\x01"])
def test_spoilt_headers_are_noticed_when_results_are_made_anew(kept, tmp_path, spoilt):
    kept.keep((1, 0), seal_of([b"header"]))
    (tmp_path / "round-1-attempt-0.headers").write_bytes(spoilt)
    with pytest.raises(StoreDamaged):
        RoundResults(tmp_path)


@pytest.mark.parametrize("at", [(2, 0), (1, 1), (0, 0)])
def test_a_result_that_was_never_there_is_stale(kept, at):
    kept.keep((1, 0), seal_of([b"header"]))
    with pytest.raises(StaleRound):
        kept.headers(at)
    with pytest.raises(StaleRound):
        list(kept.ciphertexts(at))


def test_the_oldest_rounds_are_removed_and_whoever_needs_them_is_told_what_to_do(kept, tmp_path):
    for number in range(1, 7):
        kept.keep((number, 0), seal_of([b"header"]))
        kept.keep((number, 1), seal_of([b"second attempt"]))
        assert len({at.name.split("-")[1] for at in tmp_path.iterdir()}) <= 3
    assert len(kept) == 6
    for number in (1, 2, 3):
        with pytest.raises(ResultExpired) as caught:
            kept.headers((number, 0))
        with pytest.raises(ResultExpired):
            list(kept.ciphertexts((number, 1)))
    assert caught.value.code == "result_expired"
    assert "out of this study" in caught.value.hint
    assert list(kept.ciphertexts((4, 1))) == SUMS
    with pytest.raises(StaleRound):
        kept.headers((7, 0))


def test_forgotten_rounds_leave_no_file(kept, tmp_path):
    for number in (1, 2, 3):
        kept.keep((number, 0), seal_of([b"header"]))
    kept.forget(3)
    assert {path.stem for path in tmp_path.iterdir()} == {"round-3-attempt-0"}
    with pytest.raises(StaleRound):
        kept.headers((2, 0))
    kept.forget(4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write", "os.fsync", "os.replace", "open"])
def test_on_a_full_disk_there_is_no_half_result_and_it_can_be_tried_again(kept, tmp_path, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    seal = full if step == "write" else seal_of([b"header"])
    with monkeypatch.context() as patched:
        if step == "open":
            patched.setattr(results, "open", full, raising=False)
        elif step != "write":
            patched.setattr(f"hansa.coordinator.results.{step}", full)
        with pytest.raises(StoreNotWritable, match="No space left"):
            kept.keep((1, 0), seal)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StaleRound):
        kept.headers((1, 0))
    kept.keep((1, 0), seal_of([b"header"]))
    assert list(kept.ciphertexts((1, 0))) == SUMS


def test_a_result_that_cannot_be_written_again_leaves_the_one_before(kept):
    kept.keep((1, 0), seal_of([b"header"]))

    def fails(keep):
        keep(b"x" * EXPANDED_BYTES)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreNotWritable):
        kept.keep((1, 0), fails)
    assert list(kept.ciphertexts((1, 0))) == SUMS


def test_an_altered_or_removed_file_is_a_named_error(kept, tmp_path):
    kept.keep((1, 0), seal_of([b"header"]))
    (file,) = tmp_path.glob("*.aggregate")
    os.truncate(file, EXPANDED_BYTES + 1)
    with pytest.raises(StoreDamaged, match="altered"):
        list(kept.ciphertexts((1, 0)))
    file.unlink()
    with pytest.raises(StoreDamaged, match="removed"):
        list(kept.ciphertexts((1, 0)))


def test_without_a_folder_the_files_are_gone_with_the_object():
    kept = RoundResults()
    kept.keep((1, 0), seal_of([b"header"]))
    folder = kept._folder
    assert len(list(folder.iterdir())) == 2
    assert folder.stat().st_mode & 0o077 == 0
    del kept
    gc.collect()
    assert not folder.exists()


def test_the_service_keeps_no_aggregate_in_memory(senders, adders, adding, uploads, tmp_path):
    members = senders(4)
    service = AggregationService(
        members.roster, members.terms, new_sums=adders().begin, results_folder=tmp_path, kept_rounds=2
    )
    for number in (1, 2, 3):
        service.begin(1, number, 0, members.names, members.expected(3))
        for name, upload in zip(members.names, uploads[number - 1 :], strict=False):
            service.upload(number, 0, members.header(name, upload, round=number), upload)
        service.close()
        service.close()
    with pytest.raises(ResultExpired):
        service.download(1, 0)
    assert service.download(2, 0)[1] == adding.sums_of(uploads[1:5])
    headers, stream = service.stream(3, 0)
    before = service.downlink_bytes
    assert next(stream) == adding.sums_of(uploads[2:6])[0]
    assert service.downlink_bytes == before + EXPANDED_BYTES
    stream.close()
    assert len(headers) == 4
    held = [thing for thing in gc.get_objects() if type(thing) in (list, dict, tuple)]
    values = [list(thing.values()) if type(thing) is dict else thing for thing in held]
    aggregates = [v for value in values for v in value if type(v) is bytes and len(v) == EXPANDED_BYTES]
    assert not set(aggregates) & set(service.download(3, 0)[1])


def test_a_member_that_is_too_far_behind_is_told_so_and_the_study_goes_on(house):
    """It misses the end of round 1 and the first offer to catch up; by then the result is gone."""
    service = AggregationService(house.roster, house.terms, kept_rounds=1)
    house.service = service
    for wire in house.wires.values():
        wire.service = service
    node, missed = house.node_ids["bank-4"], ["query.unmask", "query.catch_up"] * 2
    handle = house.grid._handlers[node]

    def handler(data):
        kind = from_bytes(data).metadata.message_type
        if kind in missed:
            missed.remove(kind)
            raise ConnectionError("lost")
        return handle(data)

    house.grid._handlers[node] = handler
    summaries = []
    house.run(summaries.append)
    assert [summary.contributors for summary in summaries] == [house.names, house.names[:3]]
    assert [type(error) for error in house.errors["bank-4"]] == [ResultExpired]
