"""A site's images for one study: which are trained on and which are held out, decoded and checked."""

from collections import Counter

from client.labels.held_out import HeldOut, codes_of, kept_held_out
from client.policy import check_images, check_work
from client.privacy.rules import check_patients, fewer_patients
from client.site_study import SiteStudy
from client.training.round import check_site
from foundation.messages import logger
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore


class SiteImages:
    """Decodes the images that are trained on once, those that are tested when they are asked for."""

    def __init__(self, here: SiteStudy) -> None:
        self._here = here
        self._store: TensorStore | None = None

    def store(self) -> TensorStore:
        """The decoded images that are trained on, checked against the study and against what the site permits."""
        if self._store is None:
            self._store = self._checked()
        return self._store

    def tested(self) -> TensorStore | None:
        """The decoded images of test patients, None where there are none."""
        manifest = Manifest.open(self._here.file.data)
        tested = self._held_out(manifest).tested(manifest)
        return TensorStore.build(tested, self._here.study.image, self._here.file.cache) if len(tested) else None

    def _checked(self) -> TensorStore:
        here = self._here
        whole, policy = Manifest.open(here.file.data), here.policy
        config = here.study.federated_evaluation
        if config is not None and policy.allow_label_statistics:
            codes_of(whole.table, config)  # a label that no study has is told before days of training, not after
        manifest = self._held_out(whole).pretrained(whole)
        patients = manifest.patients()
        check_images(policy, len(manifest), patients)
        check_patients(here.study, patients)
        store = TensorStore.build(manifest, here.study.image, here.file.cache)
        # Images that cannot be read are not counted, and may have been a patient's only ones.
        counts = Counter(store.patients.tolist())
        check_images(policy, len(store), None if patients is None else len(counts))
        check_site(here.study, store)
        check_work(policy, here.study, counts.values())
        if said := fewer_patients(here.study, len(counts)):
            logger.warning(f"site {here.name}: {said}")
        return store

    def _held_out(self, manifest: Manifest) -> HeldOut:
        here = self._here
        return kept_held_out(manifest, here.study, here.name, here.folder, here.vault)
