"""What a round costs beside the training in a real federation: our long-lived executor against Flower's own.

    python -m benchmarks.deployment

Server and sites run over TLS on this machine, with a model so small that training is nothing. The alternative starts
the same SuperNode without ``--isolation process``, as Flower's documentation does: then Flower's SuperExec starts a
process for every message, installs the app that came with it and imports what it names. The server and its round loop
are the same in both. Needs nginx.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.measure import write_result
from client.approval import approve
from client.kit_keys import site_init
from client.site_file import load_site_file
from federation.study import study_from
from foundation.files import write_text
from foundation.process_group import flower_environment, free_port, options
from server.enrolment.provision import accept, provision
from server.monitoring.status_writer import latest_status, read_status

ROUNDS, TARGET_S = 6, 5.0
SITES = ("north", "south")
STUDY = {
    "name": "benchmark",
    "image": {"modality": "mri", "size": 32, "channels": 1},
    "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
    "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "training": {"batch": 4},
    "algorithm": {"name": "fedavg"},
    "rounds": {"count": ROUNDS, "deadline_minutes": 30},
}
_POLICY = {"studies": "approved", "min_images": 1, "min_patients": 1, "smallest_count": 1}


def prepared(place: Path) -> tuple[Path, int]:
    """A provisioned federation whose sites are enrolled and have approved; its kits and the server's port."""
    import numpy as np
    from PIL import Image

    port = free_port()
    write_text(place / "study.yaml", study_from(STUDY, "benchmark").to_yaml())
    kits = place / "kits"
    provision(place / "study.yaml", server=f"localhost:{port}", sites=SITES, out=kits)
    for site in SITES:
        images = place / site / "patient"
        images.mkdir(parents=True)
        for number in range(8):
            noise = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(noise).save(images / f"{number}.png")
        kit = kits / f"kit-{site}"
        site_init(kit, data=place / site, device="cpu")
        raw = yaml.safe_load((kit / "site.yaml").read_text()) | {"policy": _POLICY}
        write_text(kit / "site.yaml", yaml.safe_dump(raw))
        accept(kits / "server", kit / "site.csr")
        approve(kit / "study.yaml", load_site_file(kit / "site.yaml"), "a benchmark", lambda _: True)
    return kits, port


def ours(kit: Path, port: int) -> list[str]:
    """The command of a site with our executor."""
    return [sys.executable, "-m", "fedpretext", "client", str(kit)]


def flowers(kit: Path, port: int) -> list[str]:
    """The command of a site with Flower's executor, which finds the same ClientApp by the shipped app's word."""
    keys = options(root_certificates=kit / "ca.crt", auth_supernode_private_key=kit / "site.key")
    place = options(superlink=f"localhost:{port}", host="127.0.0.1", port=free_port())
    return ["flower-supernode", *keys, *place, *options(node_config=f'site-file="{kit / "site.yaml"}"')]


def seconds_a_round(executor: str) -> float:
    """Median seconds of the rounds after the first, of two sites."""
    command = {"ours": ours, "Flower's": flowers}[executor]
    with tempfile.TemporaryDirectory(prefix="fed") as folder:
        place = Path(folder)
        kits, port = prepared(place)
        environment = flower_environment(place / "flwr")
        programs = []
        try:
            server = [sys.executable, "-m", "fedpretext", "server", str(place / "study.yaml")]
            server += ["--federation", str(kits / "server"), "--host", "127.0.0.1", "--metrics-port", "0"]
            for number, arguments in enumerate([server, *(command(kits / f"kit-{site}", port) for site in SITES)]):
                with (place / f"{number}.log").open("wb") as log:
                    home = {"FLWR_HOME": str(place / f"flwr-{number}"), "OMP_NUM_THREADS": "1"}
                    own = os.environ | environment | home
                    programs.append(subprocess.Popen(arguments, env=own, cwd=place, stdout=log, stderr=log))
            if programs[0].wait(1800) != 0:
                raise SystemExit((place / "0.log").read_text())
            return statistics.median(read_status(latest_status(kits / "server")).round_seconds[1:])
        finally:
            for program in programs:
                program.terminate()
            for program in programs:
                program.wait(60)


def main() -> None:
    """Measure both and write the page."""
    seconds = {executor: seconds_a_round(executor) for executor in ("ours", "Flower's")}
    met = "met" if seconds["ours"] < TARGET_S else "not met"
    lines = [
        f"Two sites; median of the last {ROUNDS - 2} of {ROUNDS} rounds.",
        "",
        "| executor at the sites | seconds a round | ratio |",
        "|---|---|---|",
        *(f"| {executor} | {value:.1f} | {value / seconds['ours']:.1f} |" for executor, value in seconds.items()),
        "",
        f"Target: under {TARGET_S:g} s: {met}. What is left is mostly Flower's own polling, every 3 s.",
    ]
    print(write_result("deployment", "A round's fixed cost in a real federation", __doc__, lines))


if __name__ == "__main__":
    main()
