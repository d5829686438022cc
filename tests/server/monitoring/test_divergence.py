"""How updates stand to each other: by hand, against the definition, and as the round loop writes it down."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.records import TrainInstruction, TrainReply
from foundation.events import DIVERGENCE_NAME, SNAPSHOTS
from foundation.files import append_jsonl, read_jsonl
from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from server.monitoring import divergence as module
from server.monitoring.divergence import LayerDivergence, divergence, layers_of
from ssl_methods.encoders.table import EncoderConfig

IMAGE = ImageConfig(modality="mri", size=32, channels=1)
LAYERS = {"encoder.stem": "stem", "encoder.one": "block 1"}


@dataclass
class Given:
    """A site's reply in memory."""

    site: str
    weights: dict[str, torch.Tensor]
    images: int = 1

    def tensor(self, name: str) -> torch.Tensor:
        return self.weights[name]

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.weights[name].flatten()[start:stop]


def moved(before: dict[str, torch.Tensor], site: str, **changes: list[float]) -> Given:
    """A site whose tensors ``encoder.<name>`` changed by so much."""
    return Given(site, before | {f"encoder.{n}": before[f"encoder.{n}"] + torch.tensor(c) for n, c in changes.items()})


def test_by_hand() -> None:
    before = {"encoder.stem": torch.ones(2), "encoder.one": torch.ones(2), "head.w": torch.ones(1)}
    sites = [
        moved(before, "A", stem=[1.0, 0.0], one=[3.0, 0.0]),
        moved(before, "B", stem=[0.0, 2.0], one=[4.0, 0.0]),
        moved(before, "C", stem=[0.0, 4.0], one=[-2.0, 0.0]),
    ]
    found = divergence(sites, before, LAYERS)
    # A: others' mean in the stem is (0, 3), in block 1 (1, 0). C: others' mean in block 1 is (3.5, 0).
    assert found["A"] == [LayerDivergence("stem", 0.0, 1 / 3), LayerDivergence("block 1", 1.0, 3.0)]
    assert found["C"][1].cosine == -1.0
    assert found["C"][1].norm_ratio == pytest.approx(2 / 3.5)
    assert found["B"][0] == LayerDivergence("stem", pytest.approx(2 / 4.25**0.5), pytest.approx(2 / 4.25**0.5))
    assert [each.name for each in found["B"]] == ["stem", "block 1"], "nobody moved the head"


def test_what_moves_at_one_site_only_has_no_angle() -> None:
    before = {"encoder.stem": torch.zeros(2), "encoder.one": torch.zeros(2)}
    sites = [moved(before, "A", stem=[1.0, 1.0], one=[1.0, 1.0]), moved(before, "B", stem=[1.0, 1.0])]
    found = divergence(sites, before, LAYERS)
    assert {site: [each.name for each in layers] for site, layers in found.items()} == {"A": ["stem"], "B": ["stem"]}


def test_one_site_has_no_others() -> None:
    before = {"encoder.stem": torch.zeros(2)}
    assert divergence([moved(before, "A", stem=[1.0, 1.0])], before, LAYERS) == {}


def test_counters_and_statistics_do_not_count() -> None:
    before = {"encoder.stem": torch.zeros(2), "encoder.bn.running_mean": torch.zeros(1), "n": torch.tensor(0)}
    sites = [moved(before, site, stem=[1.0, 1.0]) for site in "AB"]
    for number, site in enumerate(sites):
        site.weights |= {"encoder.bn.running_mean": torch.full((1,), number + 9.0), "n": torch.tensor(number)}
    assert divergence(sites, before, LAYERS)["A"] == [LayerDivergence("stem", pytest.approx(1), pytest.approx(1))]


@given(st.integers(2, 6), st.integers(0, 1000), st.integers(1, 9))
def test_is_the_definition_whatever_the_pieces(sites: int, seed: int, piece: int) -> None:
    draw = torch_generator(seed, "divergence")
    shapes = {"encoder.stem": (3, 4), "encoder.one": (7,), "encoder.late": (2,), "predictor.w": (5,)}
    layers = LAYERS | {"encoder.late": "block 1"}
    before = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    replies = [
        Given(f"S{n}", {name: value + torch.randn(value.shape, generator=draw) for name, value in before.items()})
        for n in range(sites)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        found = divergence(replies, before, layers)
    for place, reply in enumerate(replies):
        assert [each.name for each in found[reply.site]] == ["stem", "block 1", "head"]
        for each in found[reply.site]:
            names = [name for name in before if layers.get(name, "head") == each.name]
            moves = np.array(
                [torch.cat([(r.weights[n].double() - before[n].double()).flatten() for n in names]) for r in replies]
            )
            own, others = moves[place], np.delete(moves, place, 0).mean(0)
            lengths = np.linalg.norm(own), np.linalg.norm(others)
            assert each.cosine == pytest.approx(own @ others / (lengths[0] * lengths[1]), abs=1e-9)
            assert each.norm_ratio == pytest.approx(lengths[0] / lengths[1])


@pytest.mark.parametrize(
    ("config", "image", "last", "of_last"),
    [
        ({"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 3, "width": 24, "heads": 2}, {}, 3, "norm.weight"),
        ({"name": "resnet10t"}, {}, 4, "layer4.0.conv2.weight"),
        ({"name": "monai_swin_unetr", "width": 12, "depth": 1}, {"depth": 32}, 4, "layers4.0.blocks.0.norm1.weight"),
    ],
)
def test_layers_are_the_stem_and_every_block(config: Any, image: Any, last: int, of_last: str) -> None:
    state = torch.random.get_rng_state()
    layers = layers_of(EncoderConfig(**config), IMAGE.model_copy(update=image))
    assert list(dict.fromkeys(layers.values())) == ["stem", *(f"block {n}" for n in range(1, last + 1))]
    assert layers[f"encoder.{of_last}"] == f"block {last}"
    assert torch.equal(state, torch.random.get_rng_state())


def rows(folder: Path) -> list[tuple[int, str]]:
    return [(row["round"], row["site"]) for row in read_jsonl(folder / DIVERGENCE_NAME)]


def test_the_loop_writes_a_row_a_round_and_site(loop: Callable[..., Any]) -> None:
    run = loop()
    run.run()
    found = read_jsonl(run.folder / DIVERGENCE_NAME)
    assert [(row["round"], row["event"], row["site"]) for row in found] == [
        (number, "divergence", site) for number in (1, 2, 3) for site in "ABCD"
    ]
    # In round 1 from zeros, A moves by .75 and the others by the mean of .76, .77, .78, in the same direction.
    (layer,) = found[0]["layers"]
    assert layer == {"name": "head", "cosine": pytest.approx(1.0), "norm_ratio": pytest.approx(0.75 / 0.77, rel=1e-6)}


def test_a_resumed_loop_writes_what_an_undisturbed_one_does(loop: Callable[..., Any], honest_site: Any) -> None:
    class Killed(BaseException):
        pass

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        if (instruction.round, site) == (3, "C"):
            raise Killed
        return replace(honest_site(instruction, site))

    whole, resumed = loop(), loop()
    whole.folder = whole.folder.with_name("whole")
    whole.run()
    with pytest.raises(Killed):
        resumed.run(act)
    append_jsonl(resumed.folder / DIVERGENCE_NAME, {"round": 3, "event": "divergence", "site": "A", "layers": []})
    resumed.run()
    assert read_jsonl(resumed.folder / DIVERGENCE_NAME) == read_jsonl(whole.folder / DIVERGENCE_NAME)
    kept = [{path.name: path.read_bytes() for path in (run.folder / SNAPSHOTS).iterdir()} for run in (whole, resumed)]
    assert kept[0] == kept[1]
    assert set(kept[0]) == {f"round-{number:05d}.safetensors" for number in (1, 2, 3)}


def test_a_site_alone_has_no_rows_and_no_snapshots(loop: Callable[..., Any]) -> None:
    run = loop(quorum=1.0)
    run.run(sites="A")
    assert rows(run.folder) == []
    assert not (run.folder / SNAPSHOTS).exists()
