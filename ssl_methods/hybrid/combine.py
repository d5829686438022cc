"""Any weighted sum of methods over one encoder."""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from foundation.configuration.by_name import ByName
from foundation.configuration.section import Section
from imaging.config import ImageConfig, Relation
from ssl_methods.contrastive.simclr import SimCLRConfig
from ssl_methods.lookup import method_type
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.reconstruction.mae import MAEConfig
from ssl_methods.table import METHODS, Kind, Role


def _single() -> list[str]:
    """Methods that stand by themselves: a sum of sums would be one."""
    return [name for name in METHODS if name != "combine"]


class MemberConfig(Section):
    """One method of a sum."""

    weight: float = Field(default=1.0, gt=0.0, description="Factor on this method's loss.")
    method: Annotated[MethodConfig, ByName(_single, lambda name: method_type(name).Config)] = Field(
        description="The method's own section."
    )


class CombineConfig(MethodConfig):
    """A weighted sum of methods.

    Members are called by their names; a second one of a name is called ``simclr_2``. Their parts are ``mae.decoder``
    and so on, and are shared or kept by this section's ``share``.
    """

    name: Literal["combine"] = "combine"
    methods: tuple[MemberConfig, ...] = Field(
        default=(MemberConfig(method=MAEConfig()), MemberConfig(method=SimCLRConfig())),
        min_length=2,
        max_length=4,
        description="Two to four methods with their weights. The default joins one that restores pixels to one that "
        "compares images, as they suit different tasks afterwards.",
    )

    @property
    def partner(self) -> Relation | None:
        """The relation that the members agree on."""
        return next((member.method.partner for member in self.methods if member.method.partner is not None), None)

    @model_validator(mode="after")
    def _members_focus(self) -> Self:
        if self.focus != "none":
            raise ValueError(f"focus {self.focus}: every member draws its own views; set focus in the members")
        return self

    @model_validator(mode="after")
    def _members_agree(self) -> Self:
        wanted = {label: member.method.partner for label, member in self.labelled().items()}
        asked = {label: relation for label, relation in wanted.items() if relation is not None}
        if len(set(asked.values())) > 1:
            said = ", ".join(f"{label} by {relation}" for label, relation in asked.items())
            raise ValueError(f"an image has one partner, but members want several ({said}): let them agree")
        for label, member in self.labelled().items():
            if member.method.share is not None:
                raise ValueError(
                    f"share of member {label}: parts of all members are shared by method.share, as '{label}.PART'; "
                    "leave it out here"
                )
        return self

    def members(self) -> dict[str, MethodConfig]:
        """The methods' own sections, by what they are called."""
        return {label: member.method for label, member in self.labelled().items()}

    def labelled(self) -> dict[str, MemberConfig]:
        """The members by what they are called."""
        called: dict[str, MemberConfig] = {}
        for number, member in enumerate(self.methods):
            name = member.method.name
            before = sum(other.method.name == name for other in self.methods[:number])
            called[f"{name}_{before + 1}" if before else name] = member
        return called


class Combine(Method, name="combine"):
    """Train one encoder by several methods at once: the loss is the weighted sum of theirs.

    Every member draws its own views and runs the encoder on them; the members share nothing but the encoder, and each
    keeps its parts, roles, rates and hooks. A member that asks for no partners sees none, whatever the others ask for.
    What a member freezes of the encoder is frozen for all.
    """

    Config: ClassVar[type[MethodConfig]] = CombineConfig
    config: CombineConfig

    @classmethod
    def declared_for(cls, config: Any) -> type[Method]:
        """``Combine`` with what its members have in common, and the parts of them all."""
        members = {label: method_type(member.method.name) for label, member in config.labelled().items()}
        classes = list(members.values())
        own: dict[str, Role] = {"encoder": "shared"}
        for label, member in members.items():
            own |= {f"{label}.{part}": role for part, role in member.parts.items() if part != "encoder"}
        unshared = {f"{label}.{part}" for label, member in members.items() for part in member.private_parts}

        class CombineOfMembers(Combine):
            per_sample: ClassVar[bool] = all(member.per_sample for member in classes)
            encoders: ClassVar[tuple[Kind, ...]] = tuple(
                kind for kind in get_args(Kind) if all(kind in member.encoders for member in classes)
            )
            dimensions: ClassVar[tuple[int, ...]] = tuple(
                axes for axes in (2, 3) if all(axes in member.dimensions for member in classes)
            )
            fewest_patients: ClassVar[int] = max(member.fewest_patients for member in classes)
            private_parts: ClassVar[frozenset[str]] = frozenset(unshared)
            parts: ClassVar[dict[str, Role]] = own

        return CombineOfMembers

    def __init__(self, config: CombineConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.members = nn.ModuleDict()
        for label, member in config.labelled().items():
            method = method_type(member.method.name)(member.method, encoder, image)
            # The member goes on using the encoder, but it is a submodule of the sum alone: its state is there once.
            del method.encoder
            object.__setattr__(method, "encoder", encoder)
            self.members[label] = method

    def _each(self) -> list[tuple[str, Method]]:
        """The members by what they are called."""
        return [(label, member) for label, member in self.members.items() if isinstance(member, Method)]

    def part_of(self, key: str) -> str:
        """``encoder``, or member and part: ``mae.decoder`` of ``members.mae.decoder.norm.weight``."""
        first, *rest = key.split(".")
        return first if first == "encoder" else ".".join(rest[:2])

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Every member's, by its name."""
        return {label: member.draw(count, generator) for label, member in self._each()}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """Every member's views, as ``mae.images``."""
        alone = Batch(batch.images, batch.patients, batch.studies, batch.series)
        views: Views = {}
        for label, member in self._each():
            member.augmentation.made = self.augmentation.made
            own = member.views_from(alone if member.config.partner is None else batch, draws[label])
            views |= {f"{label}.{name}": view for name, view in own.items()}
        return views

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of weight x loss; also every member's own loss and scalars, as ``mae_loss``."""
        total: Tensor | None = None
        scalars: dict[str, Tensor] = {}
        weights = [member.weight for member in self.config.methods]
        for (label, member), weight in zip(self._each(), weights, strict=True):
            loss, own = member.loss(_of(label, views))
            total = weight * loss if total is None else weight * loss + total.to(loss.dtype)
            scalars |= {f"{label}_{name}": value for name, value in {"loss": loss.detach(), **own}.items()}
        assert total is not None  # there are at least two members
        return total, scalars

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: sum of weight x each image's loss, where every member has one of single images."""
        weights = [member.weight for member in self.config.methods]
        each = zip(self._each(), weights, strict=True)
        return torch.stack([weight * member.image_losses(_of(label, views)) for (label, member), weight in each]).sum(0)

    def is_batch_coupled(self) -> bool:
        """Whether any member couples images, or the encoder does."""
        return self.batch_normalised() or any(member.is_batch_coupled() for _, member in self._each())

    def before_step(self, progress: float) -> None:
        """Every member's."""
        for _, member in self._each():
            member.before_step(progress)

    def rate(self, part: str, progress: float, scheduled: float, peak: float) -> float:
        """The rate that a part's member gives it; of the encoder the lowest that a member gives."""
        if part == "encoder":
            return min(member.rate(part, progress, scheduled, peak) for _, member in self._each())
        label, own = part.split(".")
        return dict(self._each())[label].rate(own, progress, scheduled, peak)

    def output(self, pooled: Tensor) -> Tensor | None:
        """That of the first member that compares images, if any does."""
        return next((found for _, member in self._each() if (found := member.output(pooled)) is not None), None)

    def after_step(self, progress: float, images: int) -> None:
        """Every member's."""
        for _, member in self._each():
            member.after_step(progress, images)

    def start_local_parts(self) -> None:
        """Every member's."""
        for _, member in self._each():
            member.start_local_parts()

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """What every member shows, titled with its name."""
        return [
            (f"{label}: {title}", shown)
            for label, member in self._each()
            for title, shown in member.show(_of(label, views), image)
        ]


def _of(label: str, views: Views) -> Views:
    """One member's views by their own names."""
    return {name.removeprefix(f"{label}."): view for name, view in views.items() if name.startswith(f"{label}.")}
