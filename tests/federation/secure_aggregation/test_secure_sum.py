"""The secure sum is the plain sum, whoever drops out, and the server's view tells of the updates only their sum."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from federation.secure_aggregation.encoding import FixedPoint, decode, encode, error_bound
from federation.secure_aggregation.messages import Context, SecureAggregationError
from federation.secure_aggregation.site_session import SiteSession
from federation.secure_aggregation.store import VaultStore
from federation.secure_aggregation.streams import add_streams
from foundation.errors import QuorumError, RunError
from foundation.vault import PLAIN, Vault
from tests.federation.secure_aggregation.federation_of_sites import (
    CONTEXT,
    DIRECTORY,
    FIXED,
    IDENTITIES,
    MemoryStore,
    Sites,
    plain_mean,
    requested,
    run_honestly,
)


@pytest.mark.parametrize("stage", range(5))
@pytest.mark.parametrize("lost", [["site-b"], ["site-a", "site-f"], ["site-g", "site-h"]])
def test_the_secure_sum_is_the_plain_sum_with_dropouts_at_every_stage(stage: int, lost: list[str]) -> None:
    sites = Sites(8)
    total = run_honestly(sites, {stage: lost})
    names = [name for name in sites.names if stage > 2 or name not in lost]
    check_sum(sites, total.survivors, names, total.sums, total.count, total.sites)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_the_secure_sum_is_the_plain_sum_without_dropouts(count: int) -> None:
    sites = Sites(count)
    total = run_honestly(sites, {})
    check_sum(sites, total.survivors, sites.names, total.sums, total.count, total.sites)


def test_the_secure_sum_is_the_plain_sum_when_the_most_that_may_are_lost_one_by_one() -> None:
    sites = Sites(8)
    total = run_honestly(sites, {1: ["site-d"], 3: ["site-a"]})
    check_sum(sites, total.survivors, [n for n in sites.names if n != "site-d"], total.sums, total.count, total.sites)


def check_sum(
    sites: Sites, survivors: Sequence[str], names: Sequence[str], sums: np.ndarray, count: int, advertised: int
) -> None:
    assert list(survivors) == names
    assert count == sum(min(sites.counts[name], 1000) for name in names)
    whole = sum(encode(sites.updates[n], sites.counts[n], FIXED, advertised).view(np.int32).astype(int) for n in names)
    assert np.array_equal(sums, whole[:-1])
    off = np.abs(decode(sums, count, FIXED, advertised) - plain_mean(sites, names)).max()
    assert 0 < off <= error_bound(advertised, 1.0, count / 1000)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_one_dropout_more_than_the_threshold_allows_ends_the_attempt(stage: int) -> None:
    with pytest.raises(QuorumError, match=r"^5 of 8 sites .*; 6 are needed for a secure sum$"):
        run_honestly(Sites(8), {stage: ["site-a", "site-b", "site-c"]})


def test_two_sites_make_no_sum() -> None:
    with pytest.raises(QuorumError, match="2 sites began a secure sum; at least 3"):
        run_honestly(Sites(3), {0: ["site-a"]})


def test_an_attempt_without_a_signed_list_is_begun_anew_with_fresh_keys() -> None:
    first = Sites(4)
    first.masked()
    second = Sites(4, Context(CONTEXT.study_hash, CONTEXT.round, 1), stores=first.stores)
    assert second.advertise()[0].mask_key != first.advertise()[0].mask_key
    total = run_honestly(second, {2: ["site-c"]})
    check_sum(second, total.survivors, ["site-a", "site-b", "site-d"], total.sums, total.count, total.sites)


def test_a_signed_list_can_be_finished_in_another_attempt() -> None:
    first = Sites(4)
    run_honestly(first, {2: ["site-c"]})
    again = run_honestly(Sites(4, Context(CONTEXT.study_hash, CONTEXT.round, 1), stores=first.stores), {2: ["site-c"]})
    assert again.survivors == ("site-a", "site-b", "site-d")


def test_sites_that_restart_between_any_two_stages_answer_the_same() -> None:
    sites = Sites(4, numbers=10)
    dealt = sites.share(sites.advertise())
    members = sites.names[:3]
    for name in members:
        before = sites.mask(name, dealt, members)
        sites.restart(name)
        after = sites.sessions[name].masked([], sites.updates[name], sites.counts[name], FIXED)
        assert np.array_equal(before.values, after.values)
        assert not np.array_equal(before.values, encode(sites.updates[name], sites.counts[name], FIXED, 4))
    signatures = sites.signatures(members, members)
    request = requested(members, signatures)
    for name in members:
        sites.restart(name)
        assert sites.sessions[name].sign(members).signature
        before = sites.sessions[name].unmask(request)
        sites.restart(name)
        assert sites.sessions[name].unmask(request) == before
    assert SiteSession.resume(
        Context(CONTEXT.study_hash, CONTEXT.round, 1), IDENTITIES["site-a"], DIRECTORY, sites.stores["site-a"]
    ) is None  # fmt: skip
    assert SiteSession.resume(CONTEXT, IDENTITIES["site-a"], DIRECTORY, MemoryStore()) is None


def test_an_update_is_masked_once() -> None:
    sites = Sites(3, numbers=10)
    dealt = sites.share(sites.advertise())
    first = sites.mask("site-a", dealt)
    assert np.array_equal(sites.mask("site-a", dealt).values, first.values)
    noise = np.zeros(10, dtype=np.int64)
    noise[3] = 1
    fixed = FixedPoint(1.0, 1000, scale=1000.0)
    forwarded = [dealt[other].only_for("site-a") for other in ("site-b", "site-c")]
    with pytest.raises(SecureAggregationError, match="second masked update is asked for, of other content"):
        sites.sessions["site-a"].masked(forwarded, sites.updates["site-a"], 150, fixed, noise)
    with pytest.raises(SecureAggregationError, match="second masked update is asked for, of other content"):
        sites.mask("site-a", dealt, ["site-a", "site-b"])
    sites.restart("site-a")
    with pytest.raises(SecureAggregationError, match="second masked update"):
        sites.sessions["site-a"].masked([], sites.updates["site-b"], 150, FIXED)


def test_two_input_sets_with_equal_sums_give_the_server_the_same_view_under_recomputed_masks() -> None:
    """For the transcript of x and any x' of the same sum there are pairwise masks that make x' give that transcript."""
    sites = Sites(4)
    dealt = sites.share(sites.advertise())
    survivors = ["site-a", "site-b", "site-d"]  # site-c shared, and sends nothing
    view = {name: sites.mask(name, dealt).values for name in survivors}
    inputs = {name: encode(sites.updates[name], sites.counts[name], FIXED, 4) for name in survivors}
    fixed_masks, pair_masks = masks_of(sites, survivors, inputs)
    assert all(np.array_equal(view[n], sent(n, inputs, fixed_masks, pair_masks)) for n in survivors)  # masks are these

    other = {name: np.random.default_rng(1).integers(0, 2**32, len(inputs[name]), np.uint32) for name in survivors}
    other["site-d"] = sum(inputs.values()) - other["site-a"] - other["site-b"]
    assert np.array_equal(sum(other.values()), sum(inputs.values()))
    assert not any(np.array_equal(other[name], inputs[name]) for name in survivors)
    # a and b, b and d: each mask takes over what its first site's input has changed by.
    moved = dict(pair_masks)
    change = inputs["site-a"] - other["site-a"]
    moved["site-a", "site-b"] = pair_masks["site-a", "site-b"] + change
    moved["site-b", "site-d"] = pair_masks["site-b", "site-d"] + change + inputs["site-b"] - other["site-b"]
    for name in survivors:
        assert np.array_equal(view[name], sent(name, other, fixed_masks, moved))


Masks = dict[tuple[str, str], np.ndarray]


def masks_of(sites: Sites, survivors: list[str], inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Masks]:
    """What the server can compute in the end (self-masks, masks with the missing), and the masks between survivors."""
    length = len(next(iter(inputs.values())))
    known: dict[str, np.ndarray] = {}
    pairs: Masks = {}
    for name in survivors:
        session = sites.sessions[name]
        state = session._under_way()
        plus, minus = session._streams(state)
        others = sorted(set(state.members) - {name})
        keys = dict(zip([o for o in others if name < o], plus[1:], strict=True))
        keys |= dict(zip([o for o in others if o < name], minus, strict=True))
        masks = {other: stream(key, length) for other, key in keys.items()}
        lost = sum((masks[o] if name < o else -masks[o]) for o in others if o not in survivors)
        known[name] = stream(plus[0], length) + lost
        pairs |= {(name, other): masks[other] for other in survivors if name < other}
    return known, pairs


def stream(key: bytes, length: int) -> np.ndarray:
    values = np.zeros(length, dtype=np.uint32)
    add_streams(values, [key])
    return values


def sent(name: str, inputs: dict[str, np.ndarray], known: dict[str, np.ndarray], pairs: Masks) -> np.ndarray:
    value = inputs[name] + known[name]
    for (first, second), mask in pairs.items():
        value = value + mask if first == name else value - mask if second == name else value
    return value


def test_the_vaults_store_keeps_by_study_round_and_kind(tmp_path: Path) -> None:
    store = VaultStore(tmp_path / "secure", Vault(bytes(32)))
    assert store.get("study", 1, "survivors") is None
    store.put("study", 1, "survivors", b"list")
    store.put("study", 1, "attempt", b"secret")
    store.put("study", 2, "attempt", b"other")
    assert store.get("study", 1, "survivors") == b"list" and store.get("study", 1, "attempt") == b"secret"
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "secure").iterdir())
    store.drop("study", 1, "attempt")
    store.drop("study", 1, "attempt")
    assert store.get("study", 1, "attempt") is None and store.get("study", 2, "attempt") == b"other"
    with pytest.raises(RunError):
        VaultStore(tmp_path / "secure", PLAIN).get("study", 1, "survivors")  # never taken for "nothing was signed"
    path = tmp_path / "secure" / "study-000002.attempt"
    path.replace(tmp_path / "secure" / "study-000003.attempt")
    with pytest.raises(RunError, match="put in another file's place"):
        store.get("study", 3, "attempt")
