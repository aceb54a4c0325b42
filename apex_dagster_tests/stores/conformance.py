"""What every store must do: one suite, run by four adapters on their real servers.

A `test_<name>_store.py` subclasses `StoreConformance` and supplies three fixtures:

- `address`: (host, port) of the real server;
- `open_store`: a function (address, *, timeout_s=30.0) -> Store, prepared by whoever opens first;
  all that it opens in one test see the same data, and the fixture closes them;
- `probe`: a `Probe`, the test's own way into the server, behind the adapter's back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import pytest

from apex_dagster.errors import (
    OutcomeUnknown,
    StageMissing,
    StoreConflict,
    StoreRejected,
    StoreUnavailable,
    TransientError,
)
from apex_dagster.records import (
    Publication,
    Receipt,
    Removal,
    SagaId,
    StagedVersion,
    VersionRef,
    entity_key,
)
from apex_dagster.stores.protocol import Store
from apex_dagster_tests.stores.corpus import staged_version
from apex_dagster_tests.stores.faulty_link import Address, FaultyLink

T = TypeVar("T")
MakeVersion = Callable[..., StagedVersion]


class OpenStore(Protocol):
    def __call__(self, address: Address, *, timeout_s: float = 30.0) -> Store: ...


class Probe(Protocol):
    """Looks into a store, and changes it, without its adapter."""

    def totals(self) -> Mapping[str, int]:
        """How many items of each kind this test's documents have in the store, all versions and
        statuses together; entities that no document mentions any more do not count."""
        ...

    def statuses(self, ref: VersionRef) -> Mapping[str, int]:
        """How many items of this saga have each ingestion_status; {} if there are none."""
        ...

    def alterations(self, ref: VersionRef) -> Iterable[Callable[[], None]]:
        """Ways to damage the copy of a staged version (alter a value, remove an item, add one),
        applied in turn."""
        ...


def patiently(call: Callable[[Sequence[StagedVersion]], T], batch: Sequence[StagedVersion]) -> T:
    """What the engine does about a conflict: try again. Tests that run beside this one may cause
    one, too: they sweep entities that an undo here has left without a document."""
    for attempt in range(50):
        try:
            return call(batch)
        except StoreConflict:
            time.sleep(0.01 * min(attempt, 10))
    return call(batch)


class StoreConformance:
    """The suite. A subclass states in its class attributes what its store cannot do."""

    fenced = True  # ignores a publication older than what it has published of the document
    reports_missing = True  # publish raises StageMissing
    forgets_superseded = False  # keeps no superseded version: a cache
    concurrent_documents = 5  # for each of 8 threads
    tombstones: Mapping[str, int] = {}

    @pytest.fixture
    def store(self, open_store: OpenStore, address: Address) -> Store:
        return open_store(address)

    @pytest.fixture
    def make(self, unique: str) -> MakeVersion:
        """staged_version() with document ids and a vocabulary that begin with `unique`."""

        def make(name: str = "doc", version: int = 1, **shape: Any) -> StagedVersion:
            return staged_version(f"{unique}-{name}", version, **{"vocabulary": unique, **shape})

        return make

    @pytest.fixture
    def link(self, address: Address) -> Iterator[FaultyLink]:
        with FaultyLink(address) as link:
            yield link

    # ---- stage

    def test_staging_one_version_twice_changes_nothing(self, store, probe, make):
        version = make()
        first, once, totals = store.stage([version]), digest(store, version), probe.totals()
        assert once is not None
        assert (store.stage([version]), digest(store, version)) == (first, once)
        assert probe.totals() == totals

    def test_a_version_twice_in_one_batch_is_staged_once(self, store, probe, make):
        version = make()
        first, second = store.stage([version, version])
        assert first == second
        assert store.holdings([version.ref]) == {version.ref.saga_id: held(first)}

    def test_receipts_come_in_the_order_of_the_batch_and_count_what_is_held(
        self, store, probe, make
    ):
        batch = [make(f"d{n}", chunks=n, entities=n, relations=n // 2) for n in (5, 1, 9, 3)]
        receipts = store.stage(batch)
        assert [receipt.saga_id for receipt in receipts] == [v.ref.saga_id for v in batch]
        assert {receipt.store for receipt in receipts} == {store.name}
        refs = [version.ref for version in batch]
        assert store.holdings(refs) == {r.saga_id: held(r) for r in receipts}
        assert all(set(probe.statuses(ref)) == {"staged"} for ref in refs)

    def test_an_empty_batch_is_no_work(self, store, probe):
        assert store.stage([]) == []
        assert store.publish([]) is None
        assert (store.revert([]), store.discard([]), store.holdings([])) == ({}, {}, {})

    def test_a_batch_of_50_and_50_single_writes_give_equal_digests(self, store, make):
        batch = [make(f"d{n}", vocabulary_size=30) for n in range(50)]
        together = store.stage(batch), [digest(store, version) for version in batch]
        store.revert([version.ref for version in batch])
        alone = [patiently(store.stage, [version])[0] for version in batch]
        assert (alone, [digest(store, version) for version in batch]) == together

    # ---- exact undo

    def test_a_reverted_update_leaves_the_live_version_byte_for_byte(self, store, probe, make):
        live, update = make(version=1), make(version=2)
        publish(store, live)
        before, totals = digest(store, live), probe.totals()
        store.stage([update])
        assert digest(store, update) is not None
        assert digest(store, live) == before
        assert store.revert([update.ref])[update.ref.saga_id] > 0
        assert (digest(store, live), digest(store, update)) == (before, None)
        assert probe.totals() == totals

    def test_reverting_the_first_version_leaves_nothing(self, store, probe, make):
        version, totals = make(), probe.totals()
        store.stage([version])
        store.revert([version.ref])
        assert (digest(store, version), probe.totals()) == (None, totals)
        assert probe.statuses(version.ref) == {}

    def test_reverting_a_saga_that_never_staged_does_nothing(self, store, probe, make):
        neighbour, absent = make("neighbour"), make("absent")
        store.stage([neighbour])
        before, totals = digest(store, neighbour), probe.totals()
        assert store.revert([absent.ref]) == {absent.ref.saga_id: 0}
        assert (digest(store, neighbour), probe.totals()) == (before, totals)

    def test_revert_counts_what_it_removed_and_a_repeat_finds_nothing(self, store, make):
        version = make()
        store.stage([version])
        assert store.revert([version.ref])[version.ref.saga_id] >= 1
        assert store.revert([version.ref]) == {version.ref.saga_id: 0}
        assert store.holdings([version.ref]) == {version.ref.saga_id: 0}

    def test_revert_never_touches_what_is_committed(self, store, probe, make):
        live = make()
        publish(store, live)
        before = digest(store, live)
        assert store.revert([live.ref]) == {live.ref.saga_id: 0}
        assert digest(store, live) == before
        assert set(probe.statuses(live.ref)) == {"committed"}

    def test_undo_of_one_document_leaves_another_that_shares_its_entities(self, store, make):
        one, other = make("one", vocabulary_size=15), make("other", vocabulary_size=15)
        store.stage([one])
        before = digest(store, one)
        store.stage([other])
        assert digest(store, one) == before
        store.revert([other.ref])
        assert digest(store, one) == before

    # ---- publish

    def test_publishing_shows_the_new_version_and_retires_the_old(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        assert set(probe.statuses(new.ref)) == {"committed"}
        retired = set() if self.forgets_superseded else {"superseded"}
        assert set(probe.statuses(old.ref)) == retired

    def test_publishing_twice_is_no_work(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        before = digest(store, old), digest(store, new), probe.totals()
        store.publish([Publication(ref=new.ref, replaced=old.ref)])
        assert (digest(store, old), digest(store, new), probe.totals()) == before

    def test_a_batch_is_published_together(self, store, probe, make):
        batch = [make(f"d{n}") for n in range(20)]
        store.stage(batch)
        store.publish([Publication(ref=version.ref) for version in batch])
        assert all(set(probe.statuses(version.ref)) == {"committed"} for version in batch)

    def test_publishing_what_is_not_staged_says_so(self, store, probe, make):
        if not self.reports_missing:
            pytest.skip("this store cannot tell")
        there, gone = make("there"), make("gone")
        store.stage([there])
        with pytest.raises(StageMissing) as caught:
            store.publish([Publication(ref=there.ref), Publication(ref=gone.ref)])
        assert caught.value.saga_ids == (gone.ref.saga_id,)
        assert set(probe.statuses(there.ref)) == {"committed"}  # its neighbour does not wait for it
        assert digest(store, gone) is None

    # ---- late and repeated calls

    def test_a_late_stage_after_publish_leaves_it_committed(self, store, probe, make):
        live = make()
        receipts = publish(store, live)
        before, totals = digest(store, live), probe.totals()
        assert store.stage([live]) == receipts
        assert (digest(store, live), probe.totals()) == (before, totals)
        assert set(probe.statuses(live.ref)) == {"committed"}

    def test_a_late_stage_after_discard_never_becomes_committed(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        store.discard([old.ref])
        before = digest(store, new)
        store.stage([old])
        assert set(probe.statuses(old.ref)) <= {"staged"}
        if self.fenced:
            store.publish([Publication(ref=old.ref)])
            assert set(probe.statuses(old.ref)) <= {"staged"}
        store.discard([old.ref])
        assert (digest(store, old), probe.statuses(old.ref)) == (None, {})
        assert digest(store, new) == before

    def test_a_late_publish_of_an_older_version_changes_nothing(self, store, probe, make):
        if not self.fenced:
            pytest.skip("this store cannot compare two versions")
        older, newer = make(version=4), make(version=7)
        store.stage([older, newer])
        store.publish([Publication(ref=newer.ref)])
        before = digest(store, older), digest(store, newer)
        store.publish([Publication(ref=older.ref)])
        assert (digest(store, older), digest(store, newer)) == before
        assert set(probe.statuses(newer.ref)) == {"committed"}
        assert set(probe.statuses(older.ref)) == {"staged"}

    def test_a_late_publish_after_discard_brings_nothing_back(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        store.discard([old.ref])
        before = digest(store, new), probe.totals()
        try:
            store.publish([Publication(ref=old.ref)])
        except StageMissing:
            assert not self.fenced  # a fence knows that something newer is published: no alarm
        assert (digest(store, new), probe.totals()) == before
        assert digest(store, old) is None

    # ---- discard

    def test_discarding_the_superseded_leaves_the_live_version(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        before = digest(store, new)
        store.discard([old.ref])
        assert (digest(store, old), digest(store, new)) == (None, before)
        assert probe.statuses(old.ref) == {}
        assert store.discard([old.ref]) == {old.ref.saga_id: 0}

    @pytest.mark.parametrize("published", [False, True])
    def test_discard_removes_a_saga_whatever_its_status(self, store, probe, make, published):
        version, neighbour = make("doc"), make("neighbour", vocabulary_size=15)
        publish(store, neighbour)
        before, totals = digest(store, neighbour), probe.statuses(neighbour.ref)
        publish(store, version) if published else store.stage([version])
        assert store.discard([version.ref])[version.ref.saga_id] >= 1
        assert (digest(store, version), probe.statuses(version.ref)) == (None, {})
        assert (digest(store, neighbour), probe.statuses(neighbour.ref)) == (before, totals)

    # ---- restore

    def test_restore_makes_a_damaged_copy_whole(self, store, probe, make):
        version, other = make("doc"), make("other", vocabulary_size=15)
        publish(store, version)
        publish(store, other)
        whole, untouched = digest(store, version), digest(store, other)
        for alter in probe.alterations(version.ref):
            alter()
            assert digest(store, version) != whole
            patiently(store.restore, [version])
            assert digest(store, version) == whole
        assert digest(store, other) == untouched

    def test_restoring_what_is_whole_changes_nothing(self, store, probe, make):
        version = make("doc")
        publish(store, version)
        whole, totals = digest(store, version), probe.totals()
        patiently(store.restore, [version, version])
        assert (digest(store, version), probe.totals()) == (whole, totals)

    def test_restore_leaves_a_document_that_has_a_newer_version(self, store, probe, make):
        old, new = make("doc"), make("doc", 2)
        publish(store, old)
        publish(store, new, replaced=old)
        store.discard([old.ref])
        live, totals = digest(store, new), probe.totals()
        patiently(store.restore, [old])
        assert (digest(store, new), probe.totals()) == (live, totals)
        assert digest(store, old) is None

    # ---- remove

    def test_removing_takes_every_older_version_and_counts_it(self, store, probe, make):
        old, live, beside = (make(version=n) for n in (1, 2, 3))
        neighbour, totals = make("neighbour", vocabulary_size=15), probe.totals()
        publish(store, neighbour)
        before, alone = digest(store, neighbour), probe.totals()
        publish(store, old)
        publish(store, live, replaced=old)
        store.stage([beside])
        gone = removal(live, version_of_deletion=4)
        assert store.remove([gone])[gone.ref.saga_id] >= held_of(store, neighbour)
        assert [digest(store, version) for version in (old, live, beside)] == [None] * 3
        assert all(probe.statuses(v.ref) == {} for v in (old, live, beside))
        assert digest(store, neighbour) == before
        assert with_tombstones(alone, self.tombstones) == probe.totals() != totals
        assert store.remove([gone]) == {gone.ref.saga_id: 0}

    def test_a_late_removal_leaves_a_later_version_byte_for_byte(self, store, probe, make):
        old, again, next_ = (make(version=n) for n in (1, 3, 4))
        publish(store, old)
        gone = removal(old, version_of_deletion=2)
        store.remove([gone])
        publish(store, again)
        store.stage([next_])
        before, totals = (digest(store, again), digest(store, next_)), probe.totals()
        assert store.remove([gone]) == {gone.ref.saga_id: 0}
        assert ((digest(store, again), digest(store, next_)), probe.totals()) == (before, totals)
        assert set(probe.statuses(again.ref)) == {"committed"}
        assert not any(store.read_back([gone])[gone.ref.saga_id].values())

    def test_a_late_publish_after_removal_shows_nothing(self, store, probe, make):
        live = make()
        publish(store, live)
        gone = removal(live, version_of_deletion=2)
        store.remove([gone])
        store.publish([Publication(ref=live.ref)])  # overtaken, not missing: or it is staged again
        assert (digest(store, live), probe.statuses(live.ref)) == (None, {})
        store.stage([live])
        store.publish([Publication(ref=live.ref)])
        assert set(probe.statuses(live.ref)) <= {"staged"}
        assert not any(store.read_back([gone])[gone.ref.saga_id].values())
        store.discard([live.ref])
        assert digest(store, live) is None

    def test_each_query_path_shows_what_is_there_until_it_is_removed(self, store, make):
        live, other = make(), make("other")
        store.stage([live, other])
        doomed = [removal(live, version_of_deletion=2), removal(other, version_of_deletion=2)]
        assert not any(
            count for paths in store.read_back(doomed).values() for count in paths.values()
        )
        store.publish([Publication(ref=live.ref), Publication(ref=other.ref)])
        shown = store.read_back(doomed)
        assert all(count > 0 for paths in shown.values() for count in paths.values())
        store.remove(doomed[:1])
        left = store.read_back(doomed)
        assert set(left[doomed[0].ref.saga_id].values()) == {0}
        assert left[doomed[1].ref.saga_id] == shown[doomed[1].ref.saga_id]

    def test_removing_what_never_was_removes_nothing(self, store, probe, make):
        neighbour, absent = make("neighbour"), make("absent")
        publish(store, neighbour)
        before, totals = digest(store, neighbour), probe.totals()
        gone = removal(absent, version_of_deletion=2)
        assert store.remove([gone]) == {gone.ref.saga_id: 0}
        assert digest(store, neighbour) == before
        assert probe.totals() == with_tombstones(totals, self.tombstones)
        store.discard([gone.ref])
        assert probe.totals() == totals

    # ---- digest

    def test_any_change_of_a_copy_changes_its_digest(self, store, probe, make):
        version, other = make("doc"), make("other", vocabulary_size=15)
        store.stage([version, other])
        seen, untouched = [digest(store, version)], digest(store, other)
        for alter in probe.alterations(version.ref):
            alter()
            seen.append(digest(store, version))
        assert len(seen) > 1
        assert len(set(seen)) == len(seen)
        assert digest(store, other) == untouched

    def test_a_digest_tells_staged_from_committed(self, store, make):
        version = make()
        store.stage([version])
        staged = digest(store, version)
        store.publish([Publication(ref=version.ref)])
        assert digest(store, version) not in (staged, None)

    def test_a_digest_of_nothing_is_none(self, store, make):
        version = make()
        assert store.digest(version.ref.document_id, 1) is None
        store.stage([version])
        assert store.digest(version.ref.document_id, 2) is None

    # ---- all kinds of documents

    def test_an_empty_document_is_staged_published_and_discarded(self, store, probe, make):
        empty = make(chunks=0, entities=0, relations=0)
        store.stage([empty])
        store.stage([empty])
        assert store.digest(empty.ref.document_id, 2) is None
        store.publish([Publication(ref=empty.ref)])
        assert set(probe.statuses(empty.ref)) <= {"committed"}
        store.discard([empty.ref])
        assert (digest(store, empty), probe.statuses(empty.ref)) == (None, {})

    @pytest.mark.parametrize("text", UNICODE := (
        "Łódź – naïve café",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "مرحبا \u202bשלום\u202c",
        "e\u0301\u0323 ก็ำ",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎",
        "'\"\\;--{}[]$1 %s :x\r\n\t`",
        "長い名前" * 75,
    ), ids=range(len(UNICODE)))  # fmt: skip
    def test_unicode_survives_in_ids_texts_and_metadata(self, store, probe, make, text):
        version = with_text(make(text[:40], entities=4, relations=3), text)
        receipts = publish(store, version)
        assert store.stage([version]) == receipts
        assert store.holdings([version.ref]) == {version.ref.saga_id: held(receipts[0])}
        assert set(probe.statuses(version.ref)) == {"committed"}
        assert digest(store, version) is not None
        assert store.discard([version.ref])[version.ref.saga_id] >= 1
        assert digest(store, version) is None

    def test_names_that_differ_in_normal_form_only_stay_apart(self, store, make):
        composed = with_text(make("doc", entities=1, relations=0), "caf\u00e9")
        decomposed = with_text(make("doc", entities=1, relations=0), "cafe\u0301")
        store.stage([composed])
        first = digest(store, composed)
        store.revert([composed.ref])
        patiently(store.stage, [decomposed])
        assert digest(store, decomposed) != first

    def test_a_document_of_10_000_chunks(self, store, make):
        large = make(chunks=10_000, entities=1_500, relations=3_000)
        [receipt] = store.stage([large])
        assert store.holdings([large.ref]) == {large.ref.saga_id: held(receipt)}
        store.publish([Publication(ref=large.ref)])
        assert digest(store, large) is not None
        assert store.discard([large.ref])[large.ref.saga_id] >= 1
        assert digest(store, large) is None

    # ---- limits

    @pytest.mark.parametrize("poison", ["nul \x00 inside", "half a pair \ud83d"])
    def test_text_a_store_cannot_hold_is_rejected_and_never_visible(
        self, store, probe, make, poison
    ):
        """A store may be able to hold NUL (then it must, exactly); a lone surrogate is no text."""
        good, totals = make("good"), probe.totals()
        bad = with_text(make("bad", entities=3, relations=2), poison)
        try:
            store.stage([good, bad])
        except StoreRejected as error:
            assert set(error.document_ids) <= {bad.ref.document_id}  # noqa: PT017  # NUL may pass
        else:
            assert "\x00" in poison
            assert digest(store, bad) is not None
        assert "committed" not in {*probe.statuses(bad.ref), *probe.statuses(good.ref)}
        store.revert([good.ref, bad.ref])
        assert probe.totals() == totals
        patiently(store.stage, [good])  # and the store works as before

    # ---- concurrency

    def test_eight_threads_staging_shared_entities_lose_and_double_nothing(self, store, make):
        count = 8 * self.concurrent_documents
        batch = [make(f"d{n}", vocabulary_size=20) for n in range(count)]
        with ThreadPoolExecutor(8) as pool:
            receipts = list(pool.map(lambda version: patiently(store.stage, [version])[0], batch))
        refs, together = [v.ref for v in batch], [digest(store, version) for version in batch]
        assert store.holdings(refs) == {r.saga_id: held(r) for r in receipts}
        store.revert(refs)
        assert [patiently(store.stage, [version])[0] for version in batch] == receipts
        assert [digest(store, version) for version in batch] == together

    def test_eight_threads_staging_the_same_batch_stage_it_once(self, store, probe, make):
        batch = [make(f"d{n}", vocabulary_size=20) for n in range(4)]
        with ThreadPoolExecutor(8) as pool:
            turns = list(pool.map(lambda _: patiently(store.stage, batch), range(8)))
        totals, digests = probe.totals(), [digest(store, version) for version in batch]
        assert all(receipts == turns[0] for receipts in turns)
        store.revert([version.ref for version in batch])
        patiently(store.stage, batch)
        assert probe.totals() == totals
        assert [digest(store, version) for version in batch] == digests

    # ---- a server that is down, frozen, or out of earshot

    def test_a_stopped_server_is_unavailable_and_found_again(self, open_store, link, make):
        store, version = open_store(link.address, timeout_s=2.0), make()
        eventually(store.ping)
        link.cut()
        for call in (store.ping, lambda: store.stage([version]), store.ping):
            with within(10.0), pytest.raises(StoreUnavailable):
                call()
        link.restore()
        eventually(store.ping)
        store.stage([version])

    def test_a_frozen_server_is_an_error_in_time(self, open_store, link, make):
        store, version = open_store(link.address, timeout_s=2.0), make()
        eventually(store.ping)
        link.freeze()
        for call in (lambda: store.stage([version]), store.ping):
            with within(10.0), pytest.raises((OutcomeUnknown, StoreUnavailable)):
                call()
        link.restore()
        eventually(store.ping)

    def test_a_lost_reply_leaves_the_outcome_unknown_and_repeating_is_safe(
        self, store, open_store, link, make
    ):
        version = make()
        receipts = store.stage([version])
        expected = digest(store, version)
        store.revert([version.ref])
        deaf = open_store(link.address, timeout_s=2.0)
        eventually(deaf.ping)
        link.lose_replies()
        with within(10.0), pytest.raises(OutcomeUnknown):
            deaf.stage([version])
        assert patiently(store.stage, [version]) == receipts
        assert digest(store, version) == expected

    def test_a_write_that_lands_late_never_shows(self, store, probe, open_store, link, make):
        """The client has given up and undone it; then the network delivers what it held back."""
        version = make()
        slow = open_store(link.address, timeout_s=2.0)
        eventually(slow.ping)
        link.freeze()
        with pytest.raises((OutcomeUnknown, StoreUnavailable)):
            slow.stage([version])
        store.revert([version.ref])
        link.restore()
        eventually(slow.ping)
        assert set(probe.statuses(version.ref)) <= {"staged"}
        patiently(store.stage, [version])
        store.discard([version.ref])
        assert digest(store, version) is None


def digest(store: Store, version: StagedVersion) -> str | None:
    return store.digest(version.ref.document_id, version.ref.version)


def publish(
    store: Store, version: StagedVersion, replaced: StagedVersion | None = None
) -> list[Receipt]:
    """Stage and publish one version."""
    receipts = store.stage([version])
    store.publish([Publication(ref=version.ref, replaced=replaced.ref if replaced else None)])
    return receipts


def removal(version: StagedVersion, *, version_of_deletion: int) -> Removal:
    """A deletion of this version's document."""
    document_id = version.ref.document_id
    saga_id = SagaId(f"delete_{document_id}_{version_of_deletion:016x}")
    ref = VersionRef(document_id=document_id, version=version_of_deletion, saga_id=saga_id)
    return Removal(ref=ref, removed=version.ref)


def with_tombstones(totals: Mapping[str, int], left: Mapping[str, int]) -> Mapping[str, int]:
    """The totals after one removal."""
    return {kind: count + left.get(kind, 0) for kind, count in totals.items()}


def held_of(store: Store, version: StagedVersion) -> int:
    return store.holdings([version.ref])[version.ref.saga_id]


def held(receipt: Receipt) -> int:
    """What `holdings` has to say of this version: the first kind that its receipt counts."""
    return next(iter(receipt.items.values()))


def with_text(version: StagedVersion, text: str) -> StagedVersion:
    """`text` in every place that a document can bring some in: title, metadata, chunks, names."""
    old = version.extraction
    first, *others = old.entities
    named = replace(first, name=f"{first.name} {text}", description=text, aliases=(text,))
    named = replace(named, key=entity_key(named.type, named.name))
    keys = {first.key: named.key}
    content = replace(
        old,
        title=text,
        metadata={**old.metadata, "note": text, "nested": {"list": [text]}},
        chunks=tuple(replace(chunk, text=f"{chunk.text} {text}") for chunk in old.chunks),
        entities=(named, *others),
        relations=tuple(
            replace(
                relation,
                source_key=keys.get(relation.source_key, relation.source_key),
                target_key=keys.get(relation.target_key, relation.target_key),
                description=text,
            )
            for relation in old.relations
        ),
    )
    return replace(version, extraction=content)


class within:  # noqa: N801  # reads as a clause: `with within(10.0), pytest.raises(...)`
    """Fails if the block takes longer; the error inside is looked at by pytest.raises first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._began
        assert took < self._seconds, f"took {took:.1f} s"


def eventually(call: Callable[[], None], timeout_s: float = 10.0) -> None:
    """Repeat `call` while the store is unavailable, e.g. on connections that a fault has broken."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except TransientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
