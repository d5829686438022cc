"""A site's part in the federated evaluation: it permits a question, shows its images to the encoder, and answers."""

from torch import Tensor, nn

from client.labels.labelled_images import LabelledImages
from client.outgoing.statistics import checked_statistics
from client.policy import check_label_statistics, wait_for_quiet_hours
from client.site_images import SiteImages
from client.site_study import SiteStudy
from client.training.stored_rounds import StoredRounds
from federation.federated_evaluation import EvaluationRequest, Statistics, answer_like
from federation.records import ENCODER, weights_digest
from foundation.errors import StudyError
from foundation.machine import choose_device
from ssl_methods.encoders.outputs import feature_dim


class SiteLabels:
    """Answers questions about the labelled images of one study."""

    def __init__(self, here: SiteStudy, images: SiteImages, rounds: StoredRounds) -> None:
        self._here, self._images, self._rounds = here, images, rounds
        self._labelled: LabelledImages | None = None

    def reported(self, question: EvaluationRequest) -> Statistics:
        """What is asked about this site's labelled images; the encoder that they are asked by comes with "moments".

        StudyError for another study or question, LabelsNotPermittedError, TooFewLabelsError, RunError as ``train``.
        """
        here, config = self._here, self._here.study.federated_evaluation
        if question.study_hash != here.hash or config is None:
            raise StudyError(
                f"site {here.name}: was asked about labels for a study that has no evaluation of them here"
            )
        here.permit()
        check_label_statistics(here.policy, question.step == "histogram")
        with self._rounds.locked(here.study.rounds.count):
            if self._labelled is None:
                fewest = here.policy.smallest_count
                self._labelled = LabelledImages(here.study, config, here.folder, here.vault, fewest)
            if question.step == "moments":
                self._see(question, self._labelled)
            tensors = self._labelled.answer(question)
        return Statistics(here.hash, here.name, question.step, question.encoder, tensors)

    def statistics_like(self, answer: Statistics) -> dict[str, Tensor]:
        """Names, shapes and types of what may be told of labels."""
        config = self._here.study.federated_evaluation
        assert config is not None
        return answer_like(answer.step, feature_dim(self._here.encoder()), len(config.classes))

    def allowed(self, answer: Statistics) -> Statistics:
        """The answer as it may be sent; WithheldError when it holds anything that is not on the list."""
        here = self._here
        return checked_statistics(here.study, answer, self.statistics_like(answer), here.policy, here.name)

    def _see(self, question: EvaluationRequest, labelled: LabelledImages) -> None:
        """Compute the features of the labelled images by the encoder that was sent."""
        here = self._here
        like = {name: value for name, value in here.shared_like().items() if name.startswith(ENCODER)}
        if question.encoder != weights_digest(question.tensors) or question.tensors.keys() != like.keys():
            raise StudyError(f"site {here.name}: was sent an encoder that is not of the study")
        wait_for_quiet_hours(here.policy)
        stores = {"train": self._images.store(), "test": self._images.tested()}

        def build() -> nn.Module:
            return here.model(question.tensors).encoder

        labelled.compute(question.encoder, stores, build, choose_device(here.file.device))
