"""What a secure sum costs: CPU of a site and of the server, bytes, and plain aggregation beside it.

    python -m benchmarks.secure.sums [--sites 4 16 64] [--repetitions 5]

First a ViT-S (patch 16, 224 px) with 8 sites, of which 2 are lost after they shared their secrets, where it costs the
server most: CPU seconds of one thread that one site spends in all five stages, and all bytes that it sends and gets
beside what plain aggregation sends, an update of 4 bytes a number. Then a ViT-Ti with 4, 16 and 64 sites, of which as
many are lost as may be: CPU seconds a site, and of the server from the first message to the weighted mean, against our
FedAvg's aggregation of the survivors' updates from memory, of which there is no site's part. Signatures are checked
on both sides, with certificates. Simulated sites are sessions in one process that pass values; no network is timed.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import judged, table, write_result
from federation.algorithms.fedavg import FedAvg, FedAvgConfig
from federation.keys.certificates import ca_certificate, certificate_pem, new_key, site_certificate
from federation.secure_aggregation.encoding import FixedPoint, decode
from federation.secure_aggregation.identity import CertifiedDirectory, KeyIdentity
from federation.secure_aggregation.messages import Advertisement, Context, SealedShares, Unmasking, UnmaskRequest
from federation.secure_aggregation.server_session import ServerSession
from federation.secure_aggregation.site_session import SiteSession
from federation.secure_aggregation.store import Kind
from federation.secure_aggregation.thresholds import threshold
from foundation.messages import logger

BYTES, SECONDS = 1.3, 1.0
FIXED = FixedPoint(largest_value=1.0, largest_count=1000)
ENCODERS = {"ViT-S": "vit_small_patch16_224", "ViT-Ti": "vit_tiny_patch16_224"}


def numbers_of(encoder: str) -> int:
    """How many numbers the encoder's update has."""
    from foundation.vision_import import timm

    return sum(value.numel() for value in timm.create_model(ENCODERS[encoder], num_classes=0).state_dict().values())


class Memory:
    """A store in memory: a disk's share of the time depends on the disk and is a few kilobytes."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, Kind], bytes] = {}

    def get(self, study_hash: str, round_: int, kind: Kind) -> bytes | None:
        """What was put."""
        return self.kept.get((study_hash, round_, kind))

    def put(self, study_hash: str, round_: int, kind: Kind, data: bytes) -> None:
        """Keep it."""
        self.kept[study_hash, round_, kind] = data

    def drop(self, study_hash: str, round_: int, kind: Kind) -> None:
        """Forget it."""
        self.kept.pop((study_hash, round_, kind), None)


@dataclass
class Clock:
    """CPU seconds by party."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, party: str) -> Iterator[None]:
        """What is done within is on that party's account."""
        start = time.process_time()
        yield
        self.seconds[party] = self.seconds.get(party, 0.0) + time.process_time() - start


@dataclass
class Contribution:
    """A survivor's update as the plain aggregation reads it."""

    site: str
    images: int
    update: Tensor

    def tensor(self, name: str) -> Tensor:
        """The whole update."""
        return self.update

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """A run of it."""
        return self.update[start:stop]


@dataclass(frozen=True)
class Cost:
    """Of one round: CPU seconds of the median survivor, of the server, of plain aggregation; bytes of that survivor,
    over those of a plain update; the largest difference from the plain mean."""

    site: float
    server: float
    plain: float
    bytes_ratio: float
    difference: float


def certified_sites(count: int, context: Context) -> tuple[dict[str, SiteSession], CertifiedDirectory]:
    """Sessions of so many certified sites, by name, and how all of them are known."""
    ca_key, now = new_key(), datetime.now(UTC)
    ca = ca_certificate(ca_key, "benchmark", now, 30)
    directory, sessions = CertifiedDirectory(ca), {}
    for number in range(count):
        key, name = new_key(), f"site-{number:03d}"
        certificate = certificate_pem(site_certificate(ca, ca_key, key.public_key(), name, now, 30))
        sessions[name] = SiteSession(context, KeyIdentity(name, key, certificate), directory, Memory())
    return sessions, directory


def one_round(count: int, numbers: int) -> Cost:
    """A round with the most dropouts that may be."""
    update = torch.rand(numbers, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    context = Context("0" * 64, 1, 0)
    sessions, directory = certified_sites(count, context)
    images = {name: 100 + number for number, name in enumerate(sessions)}
    clock, traffic = Clock(), dict.fromkeys(sessions, 0)
    with clock.of("server"):
        server = ServerSession(context, directory, numbers, FIXED)
    begin(server, sessions, clock, traffic)
    with clock.of("server"):
        forwards = server.forwards()
    present = list(sessions)[: threshold(count)]
    for name in present:
        with clock.of(name):
            masked = sessions[name].masked(forwards[name], update.numpy(), images[name], FIXED)
        traffic[name] += sum(map(size, forwards[name])) + masked.values.nbytes
        with clock.of("server"):
            server.add_masked(masked)
        del masked
    finish(server, {name: sessions[name] for name in present}, clock, traffic)
    with clock.of("server"):
        total = server.total()
        mean = decode(total.sums, total.count, FIXED, total.sites).astype(np.float32)
    contributions = [Contribution(name, images[name], update) for name in present]
    with clock.of("plain"):
        plain = FedAvg(FedAvgConfig()).aggregate({"update": update}, contributions, {})[0]["update"]
    return Cost(
        statistics.median(clock.seconds[name] for name in present),
        clock.seconds["server"],
        clock.seconds["plain"],
        statistics.median(traffic[name] for name in present) / (4 * numbers),
        float(np.abs(mean - plain.numpy()).max()),
    )


def begin(server: ServerSession, sessions: dict[str, SiteSession], clock: Clock, traffic: dict[str, int]) -> None:
    """Keys and shares of all sites."""
    for name, session in sessions.items():
        with clock.of(name):
            one = session.advertise()
        traffic[name] += size(one)
        with clock.of("server"):
            server.add_advertisement(one)
    advertised = server.advertisements()
    for name, session in sessions.items():
        with clock.of(name):
            dealt = session.share(advertised)
        traffic[name] += sum(map(size, advertised)) + size(dealt)
        with clock.of("server"):
            server.add_shares(dealt)


def finish(server: ServerSession, sessions: dict[str, SiteSession], clock: Clock, traffic: dict[str, int]) -> None:
    """Signatures and shares of the survivors."""
    survivors = server.survivors()
    for name, session in sessions.items():
        with clock.of(name):
            signed = session.sign(survivors)
        traffic[name] += sum(map(len, survivors)) + len(signed.signature)
        with clock.of("server"):
            server.add_signature(signed)
    request = server.unmask_request()
    for name, session in sessions.items():
        with clock.of(name):
            released = session.unmask(request)
        traffic[name] += size(request) + size(released)
        with clock.of("server"):
            server.add_unmasking(released)


def size(message: Advertisement | SealedShares | UnmaskRequest | Unmasking) -> int:
    """Bytes of what a message says."""
    return weight(vars(message))


def weight(value: object) -> int:
    """Bytes in strings, byte strings and collections of them."""
    if isinstance(value, dict):
        return sum(weight(key) + weight(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return sum(map(weight, value))
    return len(value) if isinstance(value, str | bytes) else 0


def median_round(count: int, numbers: int, repetitions: int) -> Cost:
    """The median of each figure."""
    found = [one_round(count, numbers) for _ in range(repetitions)]
    cost = Cost(*(statistics.median(getattr(one, key) for one in found) for key in Cost.__dataclass_fields__))
    logger.info(f"{count} sites: {cost.site:.2f} s a site, {cost.server:.2f} s the server, {cost.plain:.2f} s plain")
    return cost


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    large, small = numbers_of("ViT-S"), numbers_of("ViT-Ti")
    eight = median_round(8, large, arguments.repetitions)
    counts: list[int] = arguments.sites
    rows = []
    for count in counts:
        cost = median_round(count, small, 1 if count > 16 else arguments.repetitions)
        figures = (cost.site, cost.server, cost.plain)
        ratio = f"{cost.server / cost.plain:.1f}"
        lost = str(count - threshold(count))
        ends = (ratio, f"{cost.bytes_ratio:.3f}", f"{cost.difference:.1e}")
        rows.append([str(count), lost, *(f"{f:.2f}" for f in figures), *ends])
    seconds = ["a site, CPU s", "server, CPU s", "plain aggregation, CPU s"]
    lines = [
        f"ViT-S, {large / 1e6:.1f} M numbers, 8 sites, 2 lost; medians of {arguments.repetitions} repetitions.",
        "",
        judged("CPU seconds a site a round", eight.site, SECONDS),
        judged("bytes a site a round, over those of a plain update", eight.bytes_ratio, BYTES),
        f"- server: {eight.server:.2f} CPU s; plain aggregation {eight.plain:.2f} CPU s; largest difference of means "
        f"{eight.difference:.1e}",
        "",
        f"ViT-Ti, {small / 1e6:.1f} M numbers; one repetition above 16 sites.",
        "",
        *table(["sites", "lost", *seconds, "server / plain", "bytes / plain", "difference"], rows),
    ]
    print(write_result("secure/sums", "A secure sum against plain aggregation", __doc__, lines))


if __name__ == "__main__":
    main()
