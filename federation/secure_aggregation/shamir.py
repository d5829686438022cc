"""Secret sharing: Shamir 1979, How to share a secret, over the integers modulo the prime 2**256 + 297.

A secret of 32 bytes is f(0) of a random polynomial f of degree t - 1; share number x (from 1) is f(x). Any t shares
give f by interpolation; to t - 1 of them every secret is equally likely. The prime is the smallest above 2**256, so
that every 32 bytes are a secret (keys and seeds are); a share has 33 bytes.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def share(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares number 1 to ``count``, of which any ``threshold`` give the secret. Coefficients: the system's source."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        raise ValueError(f"a secret of {len(secret)} bytes, {threshold} of {count} shares")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, count + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of exactly as many shares, by their numbers, as its threshold.

    ValueError when they do not give 32 bytes, which shares that belong together do. Wrong ones nearly always do too:
    whoever combines has to check the secret.
    """
    secret = interpolate({x: int.from_bytes(data, "big") for x, data in shares.items()}, 0)
    if secret >= 1 << 8 * SECRET_BYTES:
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def interpolate(points: Mapping[int, int], at: int) -> int:
    """f(at) of the polynomial of degree len(points) - 1 through the points (x, f(x))."""
    weights = _lagrange(tuple(points), at)
    return sum(weight * value for weight, value in zip(weights, points.values(), strict=True)) % PRIME


def _value(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):  # Horner
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=64)
def _lagrange(places: tuple[int, ...], at: int) -> list[int]:
    """prod_{j != i} (at - x_j) / (x_i - x_j) for every place x_i; a server combines many secrets at the same places."""
    weights = []
    for own in places:
        above, below = 1, 1
        for other in places:
            if other != own:
                above, below = above * (at - other) % PRIME, below * (own - other) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights
