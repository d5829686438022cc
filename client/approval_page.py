"""What a person reads before a study is approved: what is trained, what leaves and how much, what stays, the cost."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from client.labels.held_out import held_out
from client.labels.labelled_images import MOST_ENCODERS
from client.outgoing.metrics import OUTGOING_METRICS
from client.policy import Policy, check_images, check_work
from client.privacy.approval_lines import ledger_lines, promise
from client.privacy.rules import check_patients, fewer_patients, work_of_round
from client.site_file import SiteFile
from client.training.round import check_amount
from evaluation.federated.figures import FIGURES
from evaluation.federated.logistic import outputs_of
from evaluation.federated.score_histogram import BINS
from federation.algorithms.statistics import exchanges
from federation.privacy.config import PatientPrivacyConfig
from federation.records import CATEGORIES, bytes_of
from federation.study import Study
from foundation.errors import FedpretextError
from foundation.wording import counted, mebibytes
from imaging.listing.manifest import Manifest
from ssl_methods import build_method, method_class
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.method import Method

_LEARNT = "These are numbers learnt from the images, not images"


def page(study: Study, site_file: SiteFile) -> list[str]:
    """The page, line by line. The images are counted in the manifest, not decoded."""
    method = build_method(study.method, study.encoder, study.image, study.seed)
    counts, said = _images_here(study, site_file)
    images = None if counts is None else sum(counts)
    return [
        f"study {study.name}: {study.title or '(no title)'}",
        f"training hash {study.training_hash()}",
        "",
        "WHAT IS TRAINED",
        *_indented(_trained(study, counts)),
        "",
        "WHAT LEAVES THIS SITE, in each round",
        *_indented(_leaves(study, method, site_file, images)),
        *_at_the_end(study, method, site_file.policy),
        "",
        *_promised(study, site_file),
        "WHAT STAYS",
        *_indented(_stays(method, study.privacy is not None, study.secure_aggregation is not None)),
        "",
        "WHAT IT COSTS",
        *_indented(_cost(study, method, counts)),
        "",
        "THIS SITE'S POLICY",
        "  permits the study" if images is not None else "  permits the study, but not with these images:",
        *_indented(said),
    ]


def _indented(lines: Iterator[str] | list[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _promised(study: Study, site_file: SiteFile) -> Iterator[str]:
    if study.privacy is not None:
        yield from ("WHAT IS PROMISED", *_indented(promise(study)), "")
        yield from (
            "WHAT THIS SITE'S PRIVACY LEDGER SAYS",
            *_indented(ledger_lines(study, site_file.policy, site_file.ledger)),
            "",
        )


def _images_here(study: Study, site_file: SiteFile) -> tuple[list[int] | None, list[str]]:
    """Images of each patient by the manifest, None where they cannot be trained on; what there is to say of them."""
    try:
        whole = Manifest.open(site_file.data)
        held = held_out(whole, study, site_file.site)
        manifest = held.pretrained(whole)
        images, patients = len(manifest), manifest.patients()
        counts = manifest.images_each()
        check_images(site_file.policy, images, patients)
        check_patients(study, patients)
        check_amount(study, images, len(counts))
        check_work(site_file.policy, study, counts)
    except FedpretextError as error:
        return None, [str(error)]
    whose = "" if patients is None else f" of {patients} patients"
    said = [f"{images} images{whose} are listed here; they are read when training starts"]
    if held.roles:
        said.append(f"{len(held.roles)} more patients are held out, never trained on: figures are computed on them")
    if few := fewer_patients(study, len(counts)):
        said.append(few)
    return counts, said


def _trained(study: Study, counts: list[int] | None) -> Iterator[str]:
    described, training = method_class(study.method), study.training
    yield f"method: {study.method.name}: {described.summary} ({described.paper})"
    yield f"encoder: {_settings(study.encoder)}"
    yield f"images: {_settings(study.image)}"
    relation = study.method.partner
    yield "views: of one image" if relation is None else f"views: of an image and another one by {relation}"
    yield f"algorithm: {_settings(study.algorithm)}"
    yield f"rounds: {study.rounds.count}"
    amount = f"{training.epochs:g} epochs" if training.epochs is not None else f"{training.steps} steps"
    if isinstance(study.privacy, PatientPrivacyConfig):
        privacy = study.privacy
        each = counted(privacy.images_per_patient, "image")
        yield f"local work in a round: {amount}; each patient takes part in a step with probability {privacy.rate:.3g}"
        yield f"a patient who takes part gives {each} to it, drawn at random"
    else:
        yield f"local work in a round: {amount} in batches of {training.batch} x {training.accumulate}"
    if counts is not None:
        steps, images = work_of_round(study, counts)
        yield f"at this site: {steps} steps, {images:.0f} images seen, repeats counted"


def _settings(section: BaseModel) -> str:
    """What a section says, without what it leaves to the method or the modality, on one line."""
    values = section.model_dump(mode="json")
    name = [str(values.pop("name"))] if "name" in values else []
    return ", ".join([*name, *(f"{key} {text}" for key, value in values.items() if (text := _plain(value)))])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{key} {text}" for key, each in value.items() if (text := _plain(each)))
        return f"({inside})" if inside else ""
    return "" if value is None or value == [] else str(value)


def _leaves(study: Study, method: Method, site_file: SiteFile, images: int | None) -> Iterator[str]:
    for part, tensors in _by_part(method, method.shared_state()).items():
        yield f"{part}: {_amount(tensors)}"
    shared = list(method.shared_state().values())
    in_all = mebibytes(study.rounds.count * bytes_of(shared))
    yield f"together: {_amount(shared)}; {in_all} MiB in {study.rounds.count} rounds"
    if exchanges(study, method.shared_state()) > study.rounds.count:
        yield "once more after the last round: means and variances of what the encoder computes of this site's images"
    if study.secure_aggregation is not None:
        yield "of these how training moved the parameters, under masks that cancel in the sum of several sites alone"
        yield "keys for masks, signatures by this site's key, and shares of the masks' secrets, sealed for other sites"
    if study.privacy is None and study.secure_aggregation is not None:
        yield f"{_LEARNT}; an honest server sees their sum only,"
        yield "one that sends different weights to different sites can read this site's update out of it"
        yield "the count of images: under masks too, and sent as 1; no number about the round"
    elif study.privacy is None:
        yield f"{_LEARNT}; nothing keeps them free of traces of single ones."
        yield _count_told(site_file.policy, images)
        permitted = site_file.policy.metrics
        names = list(OUTGOING_METRICS) if permitted == "all" else list(permitted)
        yield f"numbers about the round, of these those that the method has: {', '.join(names) or 'none'}"
    else:
        yield f"{_LEARNT}; what noise promises about them is said below."
        yield "the count of images: sent as 1, as by every site; no number about the round"
        yield "the number of rows of this site's privacy ledger and hashes of them"
    yield f"words: the name {site_file.site}, the training hash, and of an error one of: {', '.join(CATEGORIES)}"
    yield "the number of rows of this site's audit log and hashes of them; a hash of the weights at the study's end"
    yield "nothing else: no image, name, path, header or log; who carries the traffic sees addresses, sizes and times"


def _at_the_end(study: Study, method: Method, policy: Policy) -> list[str]:
    """What the study's evaluation of labels asks for; nothing where it has none."""
    config = study.federated_evaluation
    if config is None:
        return []
    title = ["", "WHAT LEAVES THIS SITE, after the last round, of its labels"]
    if not policy.allow_label_statistics:
        refusal = "nothing: policy.allow_label_statistics is false; the study asks for sums over labelled images"
        return [*title, *_indented([refusal])]
    return [*title, *_indented(label_statistics(study, feature_dim(method.encoder), policy))]


def label_statistics(study: Study, width: int, policy: Policy | None = None) -> list[str]:
    """What a site tells of its labels, a line a thing, for features of D = ``width``; ``policy``: of one site."""
    config = study.federated_evaluation
    if config is None:
        return []
    outputs = outputs_of(len(config.classes))
    fewest = "policy.smallest_count" if policy is None else str(policy.smallest_count)
    lines = [
        f"of images with a {config.label!r} ({', '.join(config.classes)}), for {MOST_ENCODERS} encoders at most: "
        f"their count, and mean and squared deviations of {width} features",
        f"up to {config.steps} times: a loss and its gradient, {(width + 1) * outputs:,} numbers, summed over these "
        f"images; of classes that fewer than {fewest} patients have nothing",
        f"figures of the test patients ({', '.join(FIGURES)}) with their variance, and how many they are; nothing "
        f"where a class has fewer than {fewest}",
    ]
    if config.histogram and (policy is None or policy.allow_score_histogram):
        lines.append(f"how the test images' scores are spread in {BINS} bins, by class; bins under {fewest} merged")
    return [
        *lines,
        "These are sums, not labels; of few patients they can give single labels away, and a server that sends an",
        "encoder of its own making can read features, labels and images out of them.",
    ]


def _count_told(policy: Policy, images: int | None) -> str:
    if images is not None and images < policy.smallest_count:
        return f"the count of images: sent as {policy.smallest_count} (policy.smallest_count), the true one stays"
    return f"the count of images{'' if images is None else f': {images}'}"


def _stays(method: Method, private: bool, seen: bool) -> Iterator[str]:
    for part, tensors in _by_part(method, method.local_state()).items():
        yield f"{part}: {_amount(tensors)}, kept in the state folder"
    derived = sorted({part for part, role in type(method).parts.items() if role == "derived"})
    if derived:
        yield f"{', '.join(derived)}: rebuilt from the rest"
    yield "images, what is decoded of them, manifest, the optimiser's state, this site's log and this approval"
    if seen and not private:
        yield "what training looked like (private.jsonl in the state folder)"
    if private:
        yield "the rows of the privacy ledger, and what training looked like (private.jsonl in the state folder)"


def _cost(study: Study, method: Method, counts: list[int] | None) -> Iterator[str]:
    rounds, shared = study.rounds.count, bytes_of(method.shared_state().values())
    yield f"traffic: {mebibytes(shared)} MiB in and as much out in a round, {mebibytes(2 * rounds * shared)} in all"
    yield f"disk: up to {mebibytes(state_bytes(method))} MiB in the state folder, and the decoded images in the cache"
    if counts is not None:
        steps, images = work_of_round(study, counts)
        yield f"computing: {rounds * steps:,} steps, {rounds * images:,.0f} images seen, in {rounds} rounds"


def state_bytes(method: Method) -> int:
    """Bytes that the state folder takes at most."""
    trained = bytes_of(p for p in method.parameters() if p.requires_grad)
    # An update, the local parts and two moments of every weight, of the last two rounds and of one being written.
    return 3 * (bytes_of(method.shared_state().values()) + bytes_of(method.local_state().values()) + 2 * trained)


def _by_part(method: Method, tensors: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    parts: dict[str, list[Tensor]] = {}
    for key, value in tensors.items():
        parts.setdefault(method.part_of(key), []).append(value)
    return parts


def _amount(tensors: list[Tensor]) -> str:
    numbers = sum(tensor.numel() for tensor in tensors)
    return f"{numbers:,} numbers in {len(tensors)} tensors, {mebibytes(bytes_of(tensors))} MiB"
