"""The secrets of one attempt, as bytes: what a site needs to finish an attempt after it was restarted."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from federation.secure_aggregation.messages import Advertisement


@dataclass
class SiteState:
    """One attempt from the masked update on.

    members: the sites whose shares arrived, and this one; shares: by dealer, this site's share of the seed and of the
    mask key; encoded: digest of the one vector that is masked with these keys; signed: whether this attempt's list is.
    """

    attempt: int
    mask_private: bytes
    seed: bytes
    advertisements: dict[str, Advertisement]
    members: tuple[str, ...]
    shares: dict[str, tuple[bytes, bytes]]
    encoded: str
    survivors: tuple[str, ...] | None = None

    def to_bytes(self) -> bytes:
        """JSON, bytes as hexadecimal digits."""
        return json.dumps(asdict(self), default=bytes.hex).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "SiteState":
        """What ``to_bytes`` wrote."""
        read: dict[str, Any] = json.loads(data)
        return SiteState(
            attempt=read["attempt"],
            mask_private=bytes.fromhex(read["mask_private"]),
            seed=bytes.fromhex(read["seed"]),
            advertisements={site: _advertisement(one) for site, one in read["advertisements"].items()},
            members=tuple(read["members"]),
            shares={site: (bytes.fromhex(one), bytes.fromhex(two)) for site, (one, two) in read["shares"].items()},
            encoded=read["encoded"],
            survivors=None if read["survivors"] is None else tuple(read["survivors"]),
        )


def _advertisement(read: dict[str, str]) -> Advertisement:
    mask_key, seal_key, signature = (bytes.fromhex(read[key]) for key in ("mask_key", "seal_key", "signature"))
    return Advertisement(read["site"], mask_key, seal_key, read["certificate"], signature)
