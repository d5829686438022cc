"""Sums of methods: one encoder, every member's parts in their roles, every hook heard."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from foundation.errors import StudyError
from ssl_methods import METHODS, AnyMethodConfig, method_class
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.hybrid.combine import Combine
from ssl_methods.method import Batch, Draws, Method, Views

Build = Callable[..., Method]
Blobs = Callable[..., Batch]


def members(*sections: str | dict[str, Any], weights: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """Entries of ``methods`` for names, or sections, of methods."""
    whole = [{"name": section} if isinstance(section, str) else section for section in sections]
    return [
        {"method": section, "weight": weight}
        for section, weight in zip(whole, weights or [1.0] * len(whole), strict=True)
    ]


def config_of(*sections: str | dict[str, Any], **options: Any) -> Any:
    return TypeAdapter(AnyMethodConfig).validate_python({"name": "combine", "methods": members(*sections), **options})


def combined(build: Build, *sections: str | dict[str, Any], weights: tuple[float, ...] = (), **options: Any) -> Combine:
    method = build("combine", methods=members(*sections, weights=weights), **options)
    assert isinstance(method, Combine)
    return method


def parts_of(keys: Any) -> set[str]:
    """By hand: the parts to which the tensors ``keys`` of a sum belong."""
    return {"encoder" if key.startswith("encoder.") else ".".join(key.split(".")[1:3]) for key in keys}


# one state


def test_what_is_sent_is_exactly_what_is_declared(build: Build) -> None:
    method = combined(build, "mae", "ijepa")
    alone = {name: build(name) for name in ("mae", "ijepa")}
    encoder = {f"encoder.{key}" for key in alone["mae"].encoder.state_dict()}
    decoder = {f"members.mae.{key}" for key in alone["mae"].state_dict() if key.startswith("decoder.")}
    predictor = {f"members.ijepa.{key}" for key in alone["ijepa"].state_dict() if key.startswith("predictor.")}
    target = {f"members.ijepa.{key}" for key in alone["ijepa"].state_dict() if key.startswith("target_encoder.")}
    assert encoder and decoder and predictor and target
    assert set(method.shared_state()) == encoder | decoder | predictor
    assert set(method.local_state()) == target
    assert set(method.state_dict()) == encoder | decoder | predictor | target


def test_the_encoder_is_there_once_and_every_member_uses_it(build: Build) -> None:
    method = combined(build, "mae", "simclr", "ijepa")
    assert all(member.encoder is method.encoder for member in method.members.values())
    places = [value.data_ptr() for value in method.state_dict().values() if value.numel()]
    assert len(places) == len(set(places))
    inside = {id(module) for member in method.members.values() for module in member.modules()}
    assert id(method.encoder) not in inside


def test_a_copy_has_an_encoder_of_its_own_and_one_only(build: Build) -> None:
    method = combined(build, "mae", "ijepa")
    other = copy.deepcopy(method)
    assert other.encoder is not method.encoder
    assert all(member.encoder is other.encoder for member in other.members.values())


def test_state_goes_out_and_in_again(build: Build) -> None:
    method, other = combined(build, "mae", "ijepa"), combined(build, "mae", "ijepa", seed=1)
    other.load_state_dict({**method.shared_state(), **method.local_state()})
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())


def test_types_and_modes_reach_every_part(build: Build, blobs: Blobs) -> None:
    method = combined(build, "mae", "ijepa", {"name": "dino", "outputs": 16})
    views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
    method.double()
    floating = [value for value in method.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.float64}
    loss, _ = method.loss({key: value.double() if value.is_floating_point() else value for key, value in views.items()})
    assert loss.dtype == torch.float64
    method.train()
    assert method.encoder.training and method.get_submodule("members.mae.decoder").training
    assert not method.get_submodule("members.ijepa.target_encoder").training
    method.eval()
    assert not method.encoder.training and not method.get_submodule("members.mae.decoder").training


# share


def test_a_study_shares_parts_by_member(build: Build) -> None:
    method = combined(build, "mae", "ijepa", share=["encoder", "mae.decoder"])
    assert parts_of(method.shared_state()) == {"encoder", "mae.decoder"}
    assert parts_of(method.local_state()) == {"ijepa.predictor", "ijepa.target_encoder"}
    only = combined(build, "mae", "ijepa", share=["encoder"])
    assert parts_of(only.shared_state()) == {"encoder"}


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (
            ["encoder", "mae.decodr"],
            "method.share 'mae.decodr' is no part of 'combine'; there are: encoder, mae.decoder, moco_v2.projector, "
            "moco_v2.key_encoder, moco_v2.key_projector; did you mean 'mae.decoder'?",
        ),
        (["encoder", "moco_v2.queue"], "method.share 'moco_v2.queue' is no part of 'combine'"),
        (["mae.decoder"], "method.share leaves out 'encoder'"),
    ],
)
def test_sharing_what_is_not_there_is_refused(share: list[str], message: str, build: Build) -> None:
    with pytest.raises(StudyError) as caught:
        combined(build, "mae", "moco_v2", share=share)
    assert message in str(caught.value)


# the sum


def test_the_loss_is_the_weighted_sum_of_the_members_own(build: Build, blobs: Blobs) -> None:
    method, views = combined(build, "mae", "simclr", weights=(0.3, 2.0)), {}
    alone = build("mae")  # the same seed: encoder and decoder are drawn first
    views = method.make_views(blobs(6), torch.Generator().manual_seed(0))
    own = alone.make_views(blobs(6), torch.Generator().manual_seed(0))
    assert all(torch.equal(own[name], views[f"mae.{name}"]) for name in own)
    loss, scalars = method.loss(views)
    assert set(scalars) == {"mae_loss", "simclr_loss", "simclr_anchors_left_out"}
    assert scalars["mae_loss"].item() == alone.loss(own)[0].item()
    by_hand = 0.3 * scalars["mae_loss"].item() + 2.0 * scalars["simclr_loss"].item()
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    swapped = combined(build, "mae", "simclr", weights=(2.0, 0.3)).loss(views)[0].item()
    assert swapped != pytest.approx(by_hand, rel=1e-2)


def test_the_gradient_is_the_weighted_sum_too(build: Build, blobs: Blobs) -> None:
    method = combined(build, "mae", "rotation", weights=(0.5, 3.0))
    views = method.make_views(blobs(3), torch.Generator().manual_seed(0))
    weight = method.encoder.get_parameter("patch_embed.proj.weight")
    total = torch.autograd.grad(method.loss(views)[0], weight)[0]
    expected = torch.zeros_like(weight)
    for name, factor in (("mae", 0.5), ("rotation", 3.0)):
        own = {key.removeprefix(f"{name}."): value for key, value in views.items() if key.startswith(f"{name}.")}
        expected += factor * torch.autograd.grad(method.members[name].loss(own)[0], weight)[0]
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-7)


def test_a_weight_that_is_forgotten_is_caught(build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain_sum(self: Combine, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        own = [{k.split(".", 1)[1]: v for k, v in views.items() if k.startswith(f"{name}.")} for name in self.members]
        losses = [member.loss(each)[0] for member, each in zip(self.members.values(), own, strict=True)]
        return torch.stack(losses).sum(), {}

    monkeypatch.setattr(Combine, "loss", plain_sum)
    with pytest.raises(AssertionError):
        test_the_gradient_is_the_weighted_sum_too(build, blobs)


def test_two_of_a_name_are_told_apart(build: Build, blobs: Blobs) -> None:
    method = combined(build, {"name": "rotation", "copies": "one"}, "rotation", "mae")
    assert set(method.parts) == {"encoder", "rotation.head", "rotation_2.head", "mae.decoder"}
    views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
    assert views["rotation.turns"].shape == (2, 1) and views["rotation_2.turns"].shape == (2, 4)
    assert {"rotation_loss", "rotation_2_loss", "mae_loss"} <= set(method.loss(views)[1])
    heads = [method.members[name].get_parameter("head.0.weight") for name in ("rotation", "rotation_2")]
    assert not torch.equal(*heads)


@pytest.mark.slow
def test_both_members_learn(build: Build, blobs: Blobs) -> None:
    method = combined(build, "mae", "rotation")
    views = method.make_views(blobs(8), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    history = []
    for _ in range(40):
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append({name: float(value) for name, value in scalars.items()})
    assert history[-1]["mae_loss"] < 0.6 * history[0]["mae_loss"]
    assert history[-1]["rotation_loss"] < 0.7 * history[0]["rotation_loss"]
    assert history[-1]["rotation_accuracy"] > 0.5  # by chance 1 / 4


# declarations


@pytest.mark.parametrize(
    ("sections", "per_sample", "encoders", "dimensions", "patients"),
    [
        (("mae", "ijepa"), True, {"vit"}, "both", 1),
        (("mae", "rotation"), True, {"vit"}, "both", 1),
        (("rotation", "jigsaw"), True, {"vit", "convolutional", "swin"}, {2}, 1),
        (("rotation", "simclr"), False, {"vit", "convolutional", "swin"}, {2, 3}, 2),
        (("mae", "simclr"), False, {"vit"}, {2, 3}, 2),
    ],
)
def test_declarations_are_what_members_have_in_common(
    sections: tuple[str, ...], per_sample: bool, encoders: set[str], dimensions: Any, patients: int
) -> None:
    declared = method_class(config_of(*sections))
    assert issubclass(declared, Combine)
    assert declared.per_sample == per_sample
    assert set(declared.encoders) == encoders
    both = set(METHODS[sections[0]].dimensions) & set(METHODS[sections[1]].dimensions)
    assert set(declared.dimensions) == (both if dimensions == "both" else dimensions)
    assert declared.fewest_patients == patients


def test_the_class_itself_declares_the_default_sum() -> None:
    declared = method_class(TypeAdapter(AnyMethodConfig).validate_python({"name": "combine"}))
    for name in ("per_sample", "encoders", "dimensions", "parts", "fewest_patients", "private_parts", "family"):
        assert getattr(declared, name) == getattr(Combine, name), name


def test_one_sum_s_declarations_do_not_reach_another() -> None:
    first, second = method_class(config_of("mae", "ijepa")), method_class(config_of("mae", "simclr"))
    assert first.per_sample and not second.per_sample and not Combine.per_sample
    assert "ijepa.predictor" not in second.parts


def test_batch_normalisation_of_a_member_or_the_encoder_couples(build: Build) -> None:
    resnet = EncoderConfig(name="resnet10t")
    assert not combined(build, "mae", "ijepa").is_batch_coupled()
    assert combined(build, "mae", "byol").is_batch_coupled()
    assert combined(build, "rotation", "slice_order", encoder=resnet).is_batch_coupled()


@pytest.mark.parametrize(
    ("sections", "encoder", "message"),
    [
        (("rotation", "mae"), "resnet10t", "encoder 'resnet10t' is convolutional, but method 'mae' takes vit encoders"),
        (("rotation", "jigsaw"), "monai_vit", "encoder 'monai_vit' is for volumes"),
    ],
)
def test_an_encoder_that_one_member_does_not_take_is_refused(
    sections: tuple[str, ...], encoder: str, message: str, build: Build
) -> None:
    with pytest.raises(StudyError) as caught:
        combined(build, *sections, encoder=EncoderConfig(name=encoder))
    assert message in str(caught.value)


# partners


@pytest.mark.parametrize(
    ("sections", "partner"),
    [
        (("mae", "simclr"), None),
        (("mae", {"name": "simclr", "positives": "patient"}), "patient"),
        (({"name": "byol", "positives": "series"}, {"name": "simclr", "positives": "series"}), "series"),
        (("slice_order", "mae"), "placed"),
    ],
)
def test_members_agree_on_partners(sections: tuple[Any, ...], partner: str | None) -> None:
    assert config_of(*sections).partner == partner


def refusal(*sections: Any, **options: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config_of(*sections, **options)
    return str(caught.value)


def test_members_that_want_different_partners_are_refused() -> None:
    said = refusal({"name": "simclr", "positives": "patient"}, "slice_order")
    assert "an image has one partner, but members want several (simclr by patient, slice_order by placed)" in said


def test_a_member_that_asks_for_no_partner_sees_none(
    build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = combined(build, {"name": "simclr", "positives": "patient"}, "byol")
    seen: dict[str, Batch] = {}
    for label, member in method.members.items():
        right = member.views_from

        def spy(batch: Batch, draws: Draws, label: str = label, right: Any = right) -> Views:
            seen[label] = batch
            views: Views = right(batch, draws)
            return views

        monkeypatch.setattr(member, "views_from", spy)
    batch = blobs(4, per_patient=2)
    batch = replace(batch, partners=batch.images.flip(0), gaps=torch.ones(4))
    method.make_views(batch, torch.Generator().manual_seed(0))
    assert seen["simclr"] is batch
    assert seen["byol"].partners is None and seen["byol"].gaps is None
    assert seen["byol"].images is batch.images


# what cannot be combined


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (("mae",), "at least 2 items"),
        (("mae", "simclr", "rotation", "jigsaw", "byol"), "at most 4 items"),
        (("mae", "combine"), "does not match any of the expected tags"),
        (({"name": "mae", "share": ["encoder"]}, "simclr"), "share of member mae: parts of all members are shared by"),
    ],
)
def test_sums_that_cannot_be_are_refused(sections: tuple[Any, ...], said: str) -> None:
    assert said in refusal(*sections)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_is_above_0(weight: float) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        TypeAdapter(AnyMethodConfig).validate_python(
            {"name": "combine", "methods": members("mae", "simclr", weights=(1.0, weight))}
        )


# hooks


def test_rates_are_the_members_own(build: Build) -> None:
    method = combined(build, "simsiam", {"name": "dino", "outputs": 16, "frozen": 0.1})
    assert method.rate("encoder", 0.5, 0.3, 1.0) == 0.3
    assert method.rate("simsiam.projector", 0.5, 0.3, 1.0) == 0.3
    assert method.rate("simsiam.predictor", 0.5, 0.3, 1.0) == 1.0
    assert method.rate("dino.prototypes", 0.0, 0.3, 1.0) == 0.0
    assert method.rate("dino.prototypes", 0.5, 0.3, 1.0) == 0.3


def test_the_lowest_rate_that_a_member_gives_is_the_encoder_s(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    method = combined(build, "mae", "simclr")
    monkeypatch.setattr(method.members["simclr"], "rate", lambda *given: 0.1)
    assert method.rate("encoder", 0.5, 0.3, 1.0) == 0.1
    assert method.rate("mae.decoder", 0.5, 0.3, 1.0) == 0.3


def spread(method: nn.Module, online: str, target: str) -> float:
    pairs = zip(method.get_submodule(online).parameters(), method.get_submodule(target).parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


def test_steps_and_starts_reach_every_member(build: Build) -> None:
    target = "members.ijepa.target_encoder"
    method, alone = combined(build, "mae", "ijepa"), build("ijepa")
    for each in (method, alone):
        with torch.no_grad():
            for weight in each.encoder.parameters():
                weight.add_(0.1)
        each.after_step(0.25, 8)
    moved = zip(
        method.get_submodule(target).parameters(), alone.get_submodule("target_encoder").parameters(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in moved)
    assert spread(method, "encoder", target) > 0
    method.start_local_parts()
    assert spread(method, "encoder", target) == 0


def test_every_step_is_announced_to_every_member(build: Build) -> None:
    warming = {"teacher_temperature_start": 0.04, "teacher_temperature": 0.07, "teacher_warmup": 0.5}
    method = combined(build, "mae", {"name": "dino", "outputs": 16, **warming})
    method.before_step(0.25)
    assert float(method.members["dino"].get_buffer("temperature")) == pytest.approx(0.055)


def test_the_collapse_watch_looks_at_the_member_that_can_collapse(build: Build) -> None:
    pooled = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    method = combined(build, "mae", "simclr").eval()
    assert torch.equal(method.output(pooled), method.members["simclr"].output(pooled))
    assert combined(build, "mae", "rotation").output(pooled) is None


def test_every_member_shows_its_views_under_its_name(build: Build, blobs: Blobs) -> None:
    method = combined(build, "simclr", "rotation")
    views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
    titles = [title for title, _ in method.show(views, 0)]
    assert titles[:2] == ["simclr: first", "simclr: second"]
    assert len(titles) > 2 and all(title.startswith("rotation: ") for title in titles[2:])
