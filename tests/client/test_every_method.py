"""Every method at a site: what is sent is what is declared, the rest stays and survives, schedules go by progress."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.site import Site
from client.site_file import load_site_file
from client.training.round import TrainingContext, train_round
from federation.algorithms import build_algorithm
from federation.records import TrainInstruction, TrainReply
from federation.study import Study, study_from
from foundation.tensor_files import load_tensors
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods import METHODS, build_method, method_class
from ssl_methods.method import Method

from ..tiers import slow

ALL = sorted(METHODS)
AFFORDABLE = [slow(name) if name in ("swin_unetr", "spark") else name for name in ALL]
VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2}
RESNET = {"name": "resnet10t", "norm": "group"}
SWIN = {"name": "monai_swin_unetr", "width": 12, "depth": 1, "heads": 1}
OPTIONS: dict[str, dict[str, Any]] = {"swav": {"queue": 16}}
"""What makes a method keep something at the site that it keeps only where asked."""
CPU = torch.device("cpu")


def study_of(name: str, rounds: int = 2, **training: Any) -> Study:
    """A tiny study of the method over 2-D images, or over volumes where it takes no others."""
    flat = 2 in METHODS[name].dimensions
    image = {"modality": "mri", "size": 32, "channels": 1} | ({} if flat else {"depth": 32})
    encoder = SWIN if not flat else VIT if "vit" in METHODS[name].encoders else RESNET
    return study_from(
        {
            "name": "tiny", "image": image, "encoder": encoder,
            "method": {"name": name} | OPTIONS.get(name, {}),
            "training": {"batch": 4, "learning_rate": 0.02} | training, "algorithm": {"name": "fedavg"},
            "rounds": {"count": rounds},
        },
        "test",
    )  # fmt: skip


def hospital(folder: Path, study: Study, name: str, seed: int) -> Path:
    """Nine images (or volumes) of three patients with places along a series; the site file."""
    place, draw = folder / name, np.random.default_rng(seed)
    place.mkdir(parents=True)
    rows = ["image,patient,series,position"]
    shape = (8,) * study.image.dimensions
    for number in range(9):
        grown = np.kron(draw.integers(0, 256, shape), np.ones((4,) * len(shape)))
        np.save(place / f"{number}.npy", grown.astype(np.uint8))
        rows.append(f"{number}.npy,{name}{number % 3},{number % 3},{number}")
    (place / "manifest.csv").write_text("\n".join(rows) + "\n")
    (place / "site.yaml").write_text(
        f"site: {name}\ndata: manifest.csv\nstate: state\ncache: cache\ndevice: cpu\n"
        "policy: {studies: any, min_images: 1, min_patients: 1, smallest_count: 1}\n"
    )
    return place / "site.yaml"


def first(study: Study) -> TrainInstruction:
    method = build_method(study.method, study.encoder, study.image, study.seed)
    return TrainInstruction(study.training_hash(), 1, {k: v.clone() for k, v in method.shared_state().items()})


def second(study: Study, replies: list[TrainReply]) -> TrainInstruction:
    """The mean of the replies, as FedAvg makes it of sites of one size."""
    names = replies[0].weights
    mean = {name: torch.stack([r.weights[name].double() for r in replies]).mean(0).to(names[name]) for name in names}
    return TrainInstruction(study.training_hash(), 2, mean)


def kept(site_file: Path, round_: int) -> dict[str, Tensor]:
    """What stays at the site after a round."""
    path = next(site_file.parent.glob(f"state/*/round-{round_:05d}/local.safetensors"))
    return load_tensors(path)[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", AFFORDABLE)
def test_what_is_sent_is_what_is_declared_and_the_rest_stays(
    name: str, tmp_path: Path, restart: Callable[[], None]
) -> None:
    study = study_of(name)
    files = {site: hospital(tmp_path, study, site, seed) for seed, site in enumerate(("A", "B"))}
    replies = {site: Site(load_site_file(path), study).train(first(study)) for site, path in files.items()}
    declared = method_class(study.method)
    method = build_method(study.method, study.encoder, study.image, study.seed)
    of_role = {
        role: {key for key in method.state_dict() if declared.parts[method.part_of(key)] == role}
        for role in ("shared", "local")
    }
    for site, reply in replies.items():
        assert reply.weights.keys() == of_role["shared"]
        local = kept(files[site], 1)
        assert local.keys() == of_role["local"]
        # No tensor of the site's own is among those that leave it.
        assert not {key for key, value in local.items() if value.is_floating_point()} & reply.weights.keys()
    both = [kept(files[site], 1) for site in ("A", "B")]
    if of_role["local"]:
        assert not same(*both)
    assert not same(replies["A"].weights, replies["B"].weights)

    # The next round starts from the same shared and from each site's own local tensors: a restart changes nothing.
    instruction = second(study, list(replies.values()))
    at_once = Site(load_site_file(files["A"]), study).train(instruction)
    after = kept(files["A"], 2)
    for state in files["A"].parent.glob("state/*/round-00002/*"):
        state.unlink()
    next(files["A"].parent.glob("state/*/round-00002")).rmdir()
    restart()
    again = Site(load_site_file(files["A"]), study).train(instruction)
    assert same(at_once.weights, again.weights)
    assert same(after, kept(files["A"], 2))
    if of_role["local"]:
        assert not same(after, both[0])


def watched(method: Method, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hooks are told and which rates they give, step by step, from here on."""
    answer: list[Any] = []
    rate, before, after = method.rate, method.before_step, method.after_step

    def note_rate(part: str, progress: float, scheduled: float, peak: float) -> float:
        given = rate(part, progress, scheduled, peak)
        answer.append((part, round(given, 12)))
        return given

    def note_before(progress: float) -> None:
        answer.append(round(progress, 9))
        before(progress)

    def note_after(progress: float, images: int) -> None:
        answer.append((round(progress, 9), images))
        after(progress, images)

    for hook, noted in (("rate", note_rate), ("before_step", note_before), ("after_step", note_after)):
        monkeypatch.setattr(method, hook, noted)
    return answer


@pytest.mark.parametrize("name", AFFORDABLE)
def test_one_round_of_four_epochs_ends_where_four_rounds_of_one_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of all parts and the progress that hooks are told: the same at every step, however rounds are cut."""
    manifest = Manifest.open(hospital(tmp_path, study_of(name), "A", 0).parent)
    store = TensorStore.build(manifest, study_of(name).image, tmp_path / "store")
    seen: list[list[Any]] = []
    for rounds, epochs in ((1, 4), (4, 1)):
        study = study_of(name, rounds, epochs=epochs, batch=3)
        method = build_method(study.method, study.encoder, study.image, study.seed)
        seen.append(watched(method, monkeypatch))
        optimiser: dict[str, Tensor] = {}
        for number in range(1, rounds + 1):
            algorithm = build_algorithm(study.algorithm)
            context = TrainingContext(study, method, algorithm, store, "A", CPU)
            optimiser = train_round(context, number, optimiser).optimiser
    one, four = seen
    assert len(one) > 3 * 12
    assert one == four
