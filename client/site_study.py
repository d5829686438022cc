"""One study at one site: what every part of the site's work stands on, and whether the site permits it now."""

from collections.abc import Mapping

from torch import Tensor, nn

from client.approval import approved_study
from client.policy import check_study
from client.privacy.ledger import SiteLedger
from client.site_file import SiteFile
from client.training.workbench import Workbench
from federation.study import Study
from foundation.vault import Vault
from ssl_methods.method import Method


class SiteStudy:
    """A study as one site file has it. ``folder``: its state here; ``ledger``: open once a private one is permitted."""

    def __init__(self, site_file: SiteFile, study: Study, vault: Vault, workbench: Workbench) -> None:
        self.name, self.file, self.policy = site_file.site, site_file, site_file.policy
        self.study, self.hash = study, study.training_hash()
        self.folder = site_file.state / self.hash[:16]
        self.vault = vault.at("site", self.name, self.hash)
        self.private = study.privacy is not None
        self.secure = study.secure_aggregation is not None
        self.ledger: SiteLedger | None = None
        self._workbench = workbench

    def permit(self) -> None:
        """Ask policy and approvals, which may have changed since the last instruction; open a private one's ledger."""
        approved = approved_study(self.file, self.hash)
        check_study(self.policy, self.study, () if approved is None else (self.hash,))
        if self.private and self.ledger is None:
            self.ledger = SiteLedger(self.file, self.study)

    def shared_like(self) -> dict[str, Tensor]:
        """The tensors that the study shares, as its seed draws them: the names, shapes and types of every update."""
        method, pristine = self._workbench.of(self.study)
        return {name: value for name, value in pristine.items() if method.role_of(name) == "shared"}

    def encoder(self) -> nn.Module:
        """The study's encoder, in whatever state it was left."""
        return self._workbench.of(self.study)[0].encoder

    def model(self, *states: Mapping[str, Tensor]) -> Method:
        """The study's model in its initial state, with the tensors of ``states`` in place of those of that name."""
        method, state = self._workbench.of(self.study)
        for more in states:
            state = {**state, **more}
        method.load_state_dict(state)
        return method
