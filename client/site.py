"""One site's part in a study: the one object that a site's app talks to.

What it does is in files of one subject each: ``site_study`` (permission), ``site_images``, ``site_training``,
``stored_rounds`` (what survives on the site's disk), ``site_labels`` (federated evaluation) and ``secure_round``.
"""

from torch import Tensor

from client.labels.site_labels import SiteLabels
from client.outgoing.answers import Answer, checked_reply
from client.site_file import SiteFile
from client.site_identity import SiteKeys
from client.site_images import SiteImages
from client.site_study import SiteStudy
from client.training.secure_round import SecureRounds
from client.training.site_training import SiteTraining
from client.training.stored_rounds import StoredRounds
from client.training.workbench import Workbench
from federation.algorithms.statistics import exchanges
from federation.flower.secure_records import SecureAnswer, SecureRequest
from federation.records import SiteInfo, TrainInstruction, TrainReply, encoder_of, same_form, weights_digest
from federation.secure_aggregation.statistics import summed_numbers
from federation.study import Study
from foundation.errors import StudyError
from foundation.files import write_json
from foundation.tensor_files import load_tensors, save_tensors
from foundation.vault import PLAIN, Vault
from ssl_methods.encoders.timm_encoders import timm_line


class Site:
    """A hospital that has one study on its disk and answers instructions for it.

    ``workbench``: where the model is built; None: one of its own.
    """

    def __init__(
        self, site_file: SiteFile, study: Study, vault: Vault = PLAIN, workbench: Workbench | None = None
    ) -> None:
        here = self._here = SiteStudy(site_file, study, vault, workbench or Workbench())
        self.name, self.study_hash = here.name, here.hash
        self.private, self.hides_counts = here.private, here.private or here.secure
        self._secure = (
            SecureRounds(study, here.name, here.folder / "secure", here.vault, here.policy) if here.secure else None
        )
        self.rounds, self.images = StoredRounds(here), SiteImages(here)
        self.training = SiteTraining(here, self.images, self.rounds, self._secure)
        self.labels = SiteLabels(here, self.images, self.rounds)

    def describe(self) -> SiteInfo:
        """Name, study and number of usable images; decodes them the first time.

        Few images are not told exactly; in a private study, and where updates are summed under masks, every site has
        1.

        StudyError, before anything is decoded, where the site does not permit the study; DataError for images that
        cannot be used.
        """
        self._here.permit()
        images = max(len(self.images.store()), self._here.policy.smallest_count)
        return SiteInfo(self.name, self.study_hash, 1 if self.hides_counts else images)

    def update_like(self) -> dict[str, Tensor]:
        """The tensors of an answer to an instruction: none where the update leaves only under masks."""
        return {} if self._secure is not None else self._here.shared_like()

    def allowed(self, answer: Answer, round_: int = 0) -> Answer:
        """The answer as it may be sent; WithheldError when it holds anything that is not on the list."""
        expected = self.update_like() if isinstance(answer, TrainReply) else {}
        return checked_reply(self._here.study, answer, expected, self._here.policy, self.name, round_)

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """The update that ``SiteTraining.trained_or_stored`` makes or finds."""
        return self.training.trained_or_stored(instruction)[0]

    def summed(self, request: SecureRequest, keys: SiteKeys) -> SecureAnswer:
        """This site's part in a stage of a secure sum; errors as ``SecureRounds.answer``, and RunError and StudyError.

        Nothing is told of a round that this site has not trained.
        """
        if self._secure is None or request.study_hash != self.study_hash:
            raise StudyError(f"site {self.name}: was asked for a secure sum of a study that has none here")
        self._here.permit()
        with self.rounds.locked(request.round):
            return self._secure.answer(request, keys, lambda: self.training.to_sum(request.round))

    def masked_numbers(self) -> int:
        """Numbers in an update as it leaves under masks."""
        return summed_numbers(self._here.study, self._here.shared_like())

    def keep_final(self, weights: dict[str, Tensor]) -> str:
        """Keep the final weights as ``final.safetensors``, and the encoder alone with the line that loads it; a digest.

        StudyError when they are not the tensors that the study shares.
        """
        if not same_form(weights, self._here.shared_like()):
            raise StudyError(f"site {self.name}: was handed weights that are not those of the study")
        folder, study = self._here.folder, self._here.study
        save_tensors(folder / "final.safetensors", weights)
        if self._secure is not None:
            self._secure.forget_before(exchanges(study, weights) + 1)
        save_tensors(folder / "encoder.safetensors", encoder_of(weights))
        write_json(folder / "encoder.json", {"study": study.name, "load": timm_line(study.encoder, study.image)})
        return weights_digest(load_tensors(folder / "final.safetensors")[0])
