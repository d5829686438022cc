"""The study's model in this process: built once, as sites in one process take turns with it."""

from torch import Tensor

from federation.study import Study
from ssl_methods import build_method
from ssl_methods.method import Method


class Workbench:
    """Holds the model of the study that was asked for last, and the state that its seed draws."""

    def __init__(self) -> None:
        self._built: tuple[str, Method, dict[str, Tensor]] | None = None

    def of(self, study: Study) -> tuple[Method, dict[str, Tensor]]:
        """The study's model, in whatever state it was left, and its initial state."""
        key = study.training_hash()
        if self._built is None or self._built[0] != key:
            self._built = None  # two large models at once may not fit
            method = build_method(study.method, study.encoder, study.image, study.seed)
            self._built = key, method, {name: value.clone() for name, value in method.state_dict().items()}
        return self._built[1:]
