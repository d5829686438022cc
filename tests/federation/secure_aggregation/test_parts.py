"""Shamir's shares, masks, the fixed-point encoding and the table of collusion, each by itself."""

import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import assume, given
from hypothesis import strategies as st

from federation.secure_aggregation.encoding import LARGEST_SUM, FixedPoint, decode, encode, error_bound
from federation.secure_aggregation.shamir import PRIME, combine, interpolate, share
from federation.secure_aggregation.streams import add_streams
from federation.secure_aggregation.thresholds import check_sites, needed_colluding, threshold
from foundation.errors import StudyError, TrainingError

from ...tiers import examples

SECRETS = st.binary(min_size=32, max_size=32)


@st.composite
def dealt(draw: st.DrawFn) -> tuple[bytes, int, dict[int, bytes]]:
    """A secret, its threshold, and as many of its shares, by number."""
    secret, count = draw(SECRETS), draw(st.integers(1, 20))
    least = draw(st.integers(1, count))
    shares = share(secret, least, count)
    chosen = draw(st.permutations(range(1, count + 1)))[:least]
    return secret, least, {number: shares[number - 1] for number in chosen}


@given(dealt())
def test_any_threshold_of_shares_gives_the_secret(case: tuple[bytes, int, dict[int, bytes]]) -> None:
    secret, _, shares = case
    assert combine(shares) == secret


@given(dealt(), SECRETS)
def test_one_share_fewer_fits_every_secret(case: tuple[bytes, int, dict[int, bytes]], other: bytes) -> None:
    """For any other secret there is a value of the last share that makes it: the shares known exclude nothing."""
    secret, _, shares = case
    assume(other != secret)
    *known, last = shares
    points = {number: int.from_bytes(shares[number], "big") for number in known}
    value = interpolate({0: int.from_bytes(other, "big"), **points}, last).to_bytes(33, "big")
    assert value != shares[last]
    assert combine({**{number: shares[number] for number in known}, last: value}) == other


def test_shares_are_drawn_anew_and_the_field_holds_every_secret() -> None:
    assert share(bytes(32), 3, 5) != share(bytes(32), 3, 5)
    assert combine(dict(enumerate(share(b"\xff" * 32, 2, 3)[:2], 1))) == b"\xff" * 32
    assert PRIME > 2**256 and all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11))
    with pytest.raises(ValueError, match="do not belong together"):
        combine({1: (PRIME - 1).to_bytes(33, "big")})
    with pytest.raises(ValueError, match="4 of 3 shares"):
        share(bytes(32), 4, 3)


@pytest.mark.parametrize("length", [0, 1, 5, 32_768, 100_003])
def test_masks_are_aes_in_counter_mode_and_cancel(length: int) -> None:
    keys = [bytes([number]) * 32 for number in range(4)]
    start = np.arange(length, dtype=np.uint32) * np.uint32(77_777)
    values = start.copy()
    add_streams(values, keys[:3], keys[3:])
    streams = [
        np.frombuffer(
            Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * length)), dtype="<u4"
        )
        for key in keys
    ]
    assert np.array_equal(values, start + streams[0] + streams[1] + streams[2] - streams[3])
    add_streams(values, keys[3:], keys[:3])
    assert np.array_equal(values, start)


def test_masking_takes_the_memory_of_a_few_blocks() -> None:
    values = np.zeros(3_000_000, dtype=np.uint32)
    update = np.zeros(3_000_000, dtype=np.float32)
    tracemalloc.start()
    add_streams(values, [bytes([number]) * 32 for number in range(20)])
    peak = tracemalloc.get_traced_memory()[1]
    encode(update, 1, FixedPoint(1.0, 10), 3)
    encoding = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 and encoding < 4 * values.size + 3e6


def test_only_flat_uint32_is_masked() -> None:
    for wrong in (np.zeros(4, np.int32), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ValueError, match="are masked"):
            add_streams(wrong, [bytes(32)])


@st.composite
def rounds(draw: st.DrawFn) -> tuple[FixedPoint, int, list[tuple[np.ndarray, int]]]:
    """An encoding, how many sites advertised, and updates and counts of those that survived, extremes among them."""
    largest = draw(st.floats(1e-6, 1000.0))
    fixed = FixedPoint(largest, draw(st.integers(1, 10**6)))
    sites = draw(st.integers(3, 64))
    biggest = float(np.nextafter(np.float32(largest), np.float32(0)))  # float32 may round largest itself up
    values = st.floats(-biggest, biggest, width=32) | st.sampled_from([-biggest, 0.0, biggest])
    update = st.lists(values, min_size=5, max_size=5).map(lambda numbers: np.array(numbers, dtype=np.float32))
    survivors = draw(st.lists(st.tuples(update, st.integers(1, 2 * 10**6)), min_size=1, max_size=min(sites, 8)))
    return fixed, sites, survivors


@examples(300)
@given(rounds())
def test_the_mean_is_within_the_stated_bound(case: tuple[FixedPoint, int, list[tuple[np.ndarray, int]]]) -> None:
    fixed, sites, survivors = case
    total = np.zeros(6, dtype=np.uint32)
    for update, count in survivors:
        total += encode(update, count, fixed, sites)
    counts = [min(count, fixed.largest_count) for _, count in survivors]
    sums = total.view(np.int32)
    assert sums[-1] == sum(counts)
    weighted = [count * update.astype(np.longdouble) for (update, _), count in zip(survivors, counts, strict=True)]
    plain = sum(weighted) / sum(counts)
    bound = error_bound(sites, fixed.largest_value, fixed.weight(sum(counts)))
    assert np.abs(decode(sums[:-1], sum(counts), fixed, sites) - plain).max() <= bound


def test_the_bound_is_nearly_reached() -> None:
    """Sites at half a step each: a bound without the factor n would be broken."""
    fixed, sites = FixedPoint(1.0, 1), 8
    step = 1 / fixed.scale_for(sites)
    update = np.full(1, 0.499 * step, dtype=np.float32)
    total = sum(encode(update, 1, fixed, sites).astype(np.int64) for _ in range(sites))
    off = abs(decode(total[:-1].astype(np.int32), sites, fixed, sites)[0] - float(update[0]))
    bound = error_bound(sites, 1.0, sites)
    assert 0.99 * bound < off <= bound
    assert bound == pytest.approx(2.0**-29, rel=1e-3)


@pytest.mark.parametrize("sites", [3, 7, 64, 1000])
def test_no_sum_of_the_largest_updates_overflows(sites: int) -> None:
    fixed = FixedPoint(0.3, LARGEST_SUM // sites)
    # The largest float32 that is at most 0.3: float32's own 0.3 is above it.
    update = np.full(70_000, np.nextafter(np.float32(0.3), np.float32(0)), dtype=np.float32)
    for sign in (1, -1):
        one = encode(np.float32(sign) * update, LARGEST_SUM, fixed, sites).view(np.int32).astype(np.int64)
        assert 0.99 * LARGEST_SUM < sign * one[0] * sites <= LARGEST_SUM
        assert one[-1] * sites <= LARGEST_SUM
    with pytest.raises(TrainingError, match=r"has a number of 0\.3, and secure_aggregation\.largest_value is 0\.3"):
        encode(np.full(1, 0.3, dtype=np.float32), 1, fixed, sites)


def test_what_could_overflow_is_refused() -> None:
    with pytest.raises(StudyError, match=r"at the scale 1e\+09: 8 sites .* overflow 31 bits above"):
        FixedPoint(1.0, 10, scale=1e9).scale_for(8)
    with pytest.raises(StudyError, match=r"largest_count 1000000: 3000 such counts overflow 31 bits; at most 715827"):
        FixedPoint(1.0, 10**6).scale_for(3000)
    assert FixedPoint(1.0, 10, scale=1e6).scale_for(8) == 1e6
    with pytest.raises(TrainingError, match="an update of 0 images"):
        encode(np.zeros(2, dtype=np.float32), 0, FixedPoint(1.0, 10), 3)


def test_noise_is_added_whole_and_refused_without_a_look_at_the_update() -> None:
    fixed = FixedPoint(1.0, 1, scale=1000.0)
    noise = np.array([3, -2000, 0], dtype=np.int64)
    update = np.array([0.5, 0.25, -1.0], dtype=np.float32)
    assert encode(update, 1, fixed, 3, noise).view(np.int32).tolist() == [503, -1750, -1000, 1]
    room = LARGEST_SUM // 3 - 1000
    assert encode(update, 1, fixed, 3, np.array([room, 0, 0])).view(np.int32)[0] == room + 500
    for values in (np.zeros(3, dtype=np.float32), -np.ones(3, dtype=np.float32)):  # whatever the update
        for too_much in (room + 1, -room - 1):
            with pytest.raises(TrainingError, match="leaves 3 updates no room in 31 bits"):
                encode(values, 1, fixed, 3, np.array([0, too_much, 0]))
    with pytest.raises(ValueError, match="noise of shape"):
        encode(update, 1, fixed, 3, noise[:2])


def test_the_table_of_collusion() -> None:
    by_hand = {3: (3, 0, 2), 4: (3, 1, 2), 5: (4, 1, 3), 6: (5, 1, 4), 7: (5, 2, 3), 8: (6, 2, 4), 10: (7, 3, 4),
               16: (11, 5, 6), 64: (43, 21, 22)}  # fmt: skip
    for sites, (answer, missing, needed) in by_hand.items():
        assert (threshold(sites), sites - threshold(sites), needed_colluding(sites)) == (answer, missing, needed)
    for sites in range(3, 65):
        assert 3 * threshold(sites) > 2 * sites
        assert next(c for c in range(1, sites) if one_update_shows(sites, c)) == needed_colluding(sites)


def one_update_shows(sites: int, colluding: int) -> bool:
    """By trying all splits: a sum of one honest site, or two lists that differ by one honest site, both signed."""
    needed, honest = threshold(sites), sites - colluding
    alone = 1 + colluding >= needed
    split = any(colluding + first >= needed and colluding + honest - first >= needed for first in range(honest + 1))
    return alone or split


@pytest.mark.parametrize("sites", [1, 2])
def test_too_few_sites_are_refused_with_what_more_would_give(sites: int) -> None:
    with pytest.raises(StudyError) as caught:
        check_sites(sites)
    text = str(caught.value)
    assert text.startswith(f"secure_aggregation with {sites} site") and "\n" not in text
    assert "at least 3 are needed" in text and "4 to do without one that drops out" in text
    assert "8 sites: 2 may be missing, 4 colluding ones and the server see one" in text
    check_sites(3)
