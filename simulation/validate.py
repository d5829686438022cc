"""What a study would do, before it does it: parts, bytes a round, memory, and what to think about first."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from federation.algorithms import build_algorithm
from federation.records import bytes_of
from federation.study import Study, load_study
from foundation.wording import counted
from imaging.listing.manifest import Manifest
from simulation.simulate import planned, simulation_config
from simulation.starting import identified, inspect_weights, source_of
from ssl_methods import build_method
from ssl_methods.encoders.outputs import feature_dim


def validate(study: Study | Path | str, overrides: Sequence[str] = ()) -> list[str]:
    """Check a study and describe it, a line a fact; errors as ``simulate`` would raise them."""
    chosen = study if isinstance(study, Study) else load_study(Path(study), tuple(overrides))
    lines = [*_method_lines(chosen)]
    trained_by = 1
    if chosen.simulation is not None:
        with TemporaryDirectory() as place:
            config = identified(simulation_config(chosen), chosen)
            if config.weights is not None:
                lines.append(inspect_weights(config, chosen)[1].line(source_of(config)))
            images, arms = planned(Path(place), chosen, config, drawn=False)
        federated = next(arm for arm in arms if arm.kind == "federated")
        sizes = federated.site_sizes()
        trained_by = len(sizes)
        assert federated.sites is not None
        patients_of = federated.sites.table.groupby("site")["patient"].nunique()
        for site, count in sizes.items():
            patients = int(patients_of[site])
            lines.append(f"site {site}: {count} images of {patients} {images.unit}s to pretrain on")
        budget = federated.budget()
        trained = [arm for arm in arms if arm.sites is not None]
        how = f"on {budget.images:,} images seen" if config.budget == "images" else "by the same passes over its own"
        lines.append(
            f"arms: {len(arms)} encoders, {len(trained)} of them pretrained, each {how}; federated: "
            f"{budget.images:,} images seen, each {budget.passes:.3g} times "
            f"({budget.sequential_steps:,} steps one after another)"
        )
        lines += _warnings(chosen, images)
    lines += _privacy_lines(chosen, trained_by)
    lines += _label_lines(chosen)
    lines.append(f"study {chosen.name}: is valid, hash {chosen.training_hash()[:12]}")
    return lines


def _method_lines(study: Study) -> Iterator[str]:
    method = build_method(study.method, study.encoder, study.image, study.seed)
    build_algorithm(study.algorithm)
    shared = method.shared_state()
    parts: dict[str, int] = {}
    for name, value in shared.items():
        part = method.part_of(name)
        parts[part] = parts.get(part, 0) + value.numel()
    sent = bytes_of(shared.values())
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    yield f"method: {study.method.name} ({type(method).paper}), encoder {study.encoder.name}, {_sides(study)} px"
    yield "shared: " + ", ".join(f"{part} {count / 1e6:.2f} M numbers" for part, count in parts.items())
    yield f"a round: {sent / 2**20:.1f} MiB to each site and as much back; {counted(study.rounds.count, 'round')}"
    # Weights, gradients and two moments in float32; activations depend on the device and are not guessed at.
    state = 4 * 4 * parameters + bytes_of(method.local_state().values())
    batch = study.training.batch * math.prod(study.image.shape) * 4
    yield f"memory at a site: about {(state + batch) / 2**20:.0f} MiB for model, optimizer and batch, plus activations"
    yield f"memory at the server: about {3 * sent / 2**20:.0f} MiB, whatever the number of sites"


def _privacy_lines(study: Study, sites: int) -> Iterator[str]:
    """What the study promises and draws of noise; ``sites``: those that train, where a simulation says so, else 1."""
    if study.privacy is None:
        return
    from client.privacy.page import plan_lines
    from federation.privacy.plan import plan_of

    plan = plan_of(study)
    if plan is not None:
        yield from plan_lines(study, plan, sites)


def _label_lines(study: Study) -> Iterator[str]:
    """What sites are asked about their labels after the last round."""
    if study.federated_evaluation is not None:
        from client.approval_page import label_statistics

        method = build_method(study.method, study.encoder, study.image, study.seed)
        for line in label_statistics(study, feature_dim(method.encoder)):
            yield f"after the last round, of each site that permits it: {line}"


def _sides(study: Study) -> str:
    """The side of an image, or the sides of a volume."""
    image = study.image
    return str(image.size) if image.depth is None else f"{image.depth} x {image.size} x {image.size}"


def _warnings(study: Study, images: Manifest) -> Iterator[str]:
    positives, label = study.method.partner, study.evaluation.label
    if positives not in ("patient", "study", "series") or not {positives, label} <= set(images.table):
        return
    labels = images.table.groupby(positives)[label].nunique()
    if (labels > 1).any():
        yield (
            f"warning: positives by {positives}, but the label {label!r} varies within {(labels > 1).sum()} of "
            f"{len(labels)} {positives}s: the encoder would learn to ignore what the task asks for; use positives: view"
        )
