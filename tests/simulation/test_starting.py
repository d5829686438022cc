"""A simulated study from starting weights: who gets them, who never hears of them, and what a resume refuses."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import client.site
import simulation.arms
from federation.records import TrainInstruction, TrainReply
from federation.study import load_study, study_from
from foundation.errors import RunError, StudyError
from foundation.files import read_json
from foundation.tensor_files import load_tensors, save_tensors
from imaging.config import ImageConfig
from server.initial import INITIAL_NAME, initial_weights, write_initial
from simulation.config import SimulationConfig
from simulation.simulate import simulate
from simulation.starting import WEIGHTS_NAME
from ssl_methods import build_method
from ssl_methods.encoders import starting_weights
from ssl_methods.encoders.starting_weights import adapt_channels, adapt_positions, file_digest
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

FILE = "secret-place.safetensors"
TINY = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=24, heads=2)


def earlier(seed: int) -> dict[str, Tensor]:
    """Weights of the study's encoder as another study would leave them: three channels, 64 pixels."""
    torch.manual_seed(seed)
    return dict(build_encoder(TINY, ImageConfig(modality="mri", size=64, channels=3)).state_dict())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of starting weights."""
    path = tmp_path / "secret-folder" / FILE
    path.parent.mkdir()
    save_file(earlier(seed=11), path)
    return path


@dataclass
class Started:
    """A run from starting weights, and what its sites received and had on their disks meanwhile."""

    study: Path
    weights: Path
    folder: Path
    first: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    found: list[Path] = field(default_factory=list)


ONE_ARM = "simulation.arms=[centralised]"


@pytest.fixture(scope="module")
def started(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Started:
    """Run once for all tests: random, natural, federated, pooled."""
    place = tmp_path_factory.mktemp("started")
    path = place / "secret-folder" / FILE
    path.parent.mkdir()
    save_file(earlier(seed=11), path)
    run = Started(finished.study, path, place)
    train: Callable[..., tuple[TrainReply, bool]] = client.site.SiteTraining.trained_or_stored

    def spy(self: Any, instruction: TrainInstruction) -> tuple[TrainReply, bool]:
        arm = self._here.file.state.parents[2]
        if instruction.round == 1:
            received = {name: value.clone() for name, value in instruction.weights.items()}
            run.first[arm.parents[1].name, self._here.name] = received
        reply = train(self, instruction)
        run.found.extend(mentions(arm, (FILE, "secret-folder")))  # the sites' folders and the study they read
        return reply

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client.site.SiteTraining, "trained_or_stored", spy)
        settings = [f"simulation.weights={path}", ONE_ARM]
        run.folder = simulate(finished.study, settings, runs=place / "runs", device="cpu").folder
    return run


@pytest.fixture
def unevaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end after pretraining."""
    monkeypatch.setattr("evaluation.stage.evaluate", lambda folder: pd.DataFrame())
    monkeypatch.setattr("evaluation.report.page.write_report", lambda folder: folder / "report.html")


def fitted() -> dict[str, Tensor]:
    """``earlier(11)`` in one channel and 32 pixels, by hand."""
    tensors = earlier(seed=11)
    name = "patch_embed.proj.weight"
    return tensors | {
        "pos_embed": adapt_positions(tensors["pos_embed"], (4, 4)),
        name: adapt_channels(tensors[name], 1),
    }


def parted(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors under its own names, and the others."""
    inside = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    return inside, {name: value for name, value in tensors.items() if not name.startswith("encoder.")}


def encoder_of(run: Path, arm: str) -> dict[str, Tensor]:
    return load_tensors(run / "arms" / arm / "fold-0" / "seed-0" / "encoder.safetensors")[0]


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def mentions(folder: Path, words: tuple[str, ...]) -> list[Path]:
    """Files below ``folder`` in which one of ``words`` stands, in the file or in its name."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() or word in path.name for word in words)
    ]


LINE = f"weights {FILE}: 17 of 17 tensors matched, 2 adapted (pos_embed, patch_embed.proj.weight), 0 of the file unused"


def test_the_first_instruction_holds_them(started: Started) -> None:
    """Every pretrained arm's: the encoder's tensors fitted, all others as the seed draws them."""
    assert set(started.first) == {
        *(("federated", site) for site in ("north", "small", "south")),
        ("centralised", "centralised"),
    }
    study = load_study(started.folder / "study.yaml")
    fresh = build_method(study.method, study.encoder, study.image, study.seed).shared_state()
    for received in started.first.values():
        inside, rest = parted(received)
        assert same(inside, fitted())
        assert rest  # the decoder
        assert same(rest, {name: fresh[name] for name in rest})


def test_no_site_hears_where_they_are_from(started: Started) -> None:
    """Neither the file's name nor its folder's stood in an arm's folder while sites trained, or stands there now."""
    assert started.found == []
    assert mentions(started.folder / "arms", (FILE, "secret-folder")) == []
    assert not list(started.folder.rglob(INITIAL_NAME))  # of use to a resume only
    assert mentions(started.folder, ("secret-folder",)) != []  # the study of the run itself, which no site reads


def test_the_arm_natural_is_them_as_they_are(started: Started) -> None:
    run = started.folder
    assert same(encoder_of(run, "pretrained-init"), fitted())
    for arm in ("random", "federated", "centralised"):
        assert not same(encoder_of(run, arm), fitted())
    facts = {row["arm"]: row for row in read_json(run / "arms.json")}
    assert facts["pretrained-init"]["title"] == "Starting weights as they are: no pretraining"
    assert (facts["pretrained-init"]["kind"], facts["pretrained-init"]["images"]) == ("pretrained-init", 0)


def test_report_and_tables_name_them(started: Started) -> None:
    """The first question is what pretraining adds to them; the supervised arm starts from them and says so."""
    run = started.folder
    assert read_json(run / "run.json")["starting_weights"] == LINE
    comparisons = pd.read_csv(run / "comparisons.csv")
    pairs = set(zip(comparisons["encoder_a"], comparisons["encoder_b"], strict=True))
    assert {("federated", "pretrained-init"), ("federated", "random"), ("federated", "supervised")} <= pairs
    report = (run / "report.html").read_text()
    answer = (
        "Starting weights as they are",
        "the weights it started from",
        "Supervised from the starting weights",
        LINE,
    )
    assert all(text in report for text in answer)
    assert "Supervised from scratch" not in report


@pytest.mark.usefixtures("unevaluated")
def test_a_resume_goes_on_from_the_runs_own_copy(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped before its second arm, resumed with the file at another place: the same encoders as in one go."""
    prepare, count = simulation.arms._prepare, [0]

    def stopping(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return prepare(*arguments)

    settings = [ONE_ARM, f"simulation.weights={started.weights}"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(simulation.arms, "_prepare", stopping)
        simulate(started.study, settings, runs=tmp_path / "runs", device="cpu")
    assert capfd.readouterr().err.count(LINE) == 1
    (run,) = (tmp_path / "runs").iterdir()
    elsewhere = shutil.copy(started.weights, tmp_path / "moved.safetensors")
    simulate(started.study, [ONE_ARM, f"simulation.weights={elsewhere}"], resume=run, device="cpu")
    assert LINE not in capfd.readouterr().err
    for arm in ("pretrained-init", "federated", "centralised"):
        assert same(encoder_of(run, arm), encoder_of(started.folder, arm))


@pytest.mark.usefixtures("unevaluated")
def test_other_weights_are_another_study(started: Started, tmp_path: Path) -> None:
    """By content, whatever the file is called: other hash, and no resume."""
    run = shutil.copytree(started.folder, tmp_path / "run")
    recorded = load_study(run / "study.yaml")
    assert recorded.simulation is not None
    assert recorded.simulation["weights_sha256"] == file_digest(started.weights)
    other = tmp_path / "other.safetensors"
    save_file(earlier(seed=12), other)
    with pytest.raises(RunError, match=r"another study \(simulation.weights_sha256 was '\w{64}' and is '\w{64}' now"):
        simulate(started.study, [f"simulation.weights={other}", ONE_ARM], resume=run, device="cpu")
    with pytest.raises(RunError, match="is of another study"):
        simulate(started.study, [ONE_ARM], resume=run, device="cpu")

    def with_(**changes: Any) -> str:
        return recorded.model_copy(update={"simulation": (recorded.simulation or {}) | changes}).whole_hash()

    own = read_json(run / "run.json")["study_hash"]
    assert own == recorded.whole_hash() == with_(weights="elsewhere")
    assert len({own, with_(weights_sha256=file_digest(other)), with_(weights=None, weights_sha256=None)}) == 3
    with pytest.raises(StudyError, match=r"but simulation.weights_sha256 is .*give the file that was meant"):
        simulate(run / "study.yaml", [f"simulation.weights={other}"], resume=run, device="cpu")


def test_what_cannot_be_started_from_leaves_no_run(study_file: Path, tmp_path: Path) -> None:
    """A file that is not there, and one of another family: one line, and no run folder."""
    runs = tmp_path / "runs"
    with pytest.raises(StudyError, match="there is no such file"):
        simulate(study_file, ["simulation.weights=nowhere.pth"], runs=runs, device="cpu")
    save_file({"conv1.weight": torch.ones(8, 3, 7, 7)}, tmp_path / "other.safetensors")
    with pytest.raises(StudyError, match=r"weights other.safetensors: none of 1 tensors matches"):
        simulate(study_file, [f"simulation.weights={tmp_path / 'other.safetensors'}"], runs=runs, device="cpu")
    assert not runs.exists() or not list(runs.iterdir())


def test_validate_says_how_they_fit(fedpretext: Callable[..., Any], study_file: Path, weights: Path) -> None:
    said = fedpretext("validate", study_file, "--set", f"simulation.weights={weights}")
    assert said.code == 0
    assert f"weights {FILE}: 17 of 17 tensors matched, 2 adapted" in said.out
    assert "arms: 10 encoders, 4 of them pretrained" in said.out


@pytest.mark.usefixtures("unevaluated")
def test_timms_own_weights(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``weights: timm`` asks timm for the encoder's name (a stand-in here); the run is known by what came."""
    create = starting_weights.vision_import.timm.create_model
    asked: list[str] = []
    source = tmp_path / "hub.safetensors"

    class Downloaded(nn.Module):
        def state_dict(self, *_: Any, **__: Any) -> Any:
            return load_tensors(source)[0]

    def hub(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        if not pretrained:
            return create(name, **arguments)
        asked.append(name)
        return Downloaded()

    monkeypatch.setattr(starting_weights.vision_import.timm, "create_model", hub)
    settings = ["simulation.weights=timm", "simulation.arms=[]", "rounds.count=1"]
    save_file(earlier(seed=11), source)
    run = simulate(study_file, settings, runs=tmp_path / "runs", device="cpu").folder
    assert set(asked) == {"vit_tiny_patch16_224"}
    assert same(encoder_of(run, "pretrained-init"), fitted())
    assert read_json(run / "run.json")["starting_weights"].startswith("weights timm: 17 of 17 tensors matched")
    save_file(earlier(seed=12), source)
    with pytest.raises(RunError, match=r"simulation.weights_sha256 was"):
        simulate(study_file, settings, resume=run, device="cpu")


def test_the_section(raw_study: dict[str, Any]) -> None:
    """A path and the word `timm` keep what they are through a study file."""
    for given, meant in (("timm", "timm"), ("a/b.pth", Path("a/b.pth")), (None, None)):
        config = SimulationConfig(weights=given)
        assert config.weights == meant
        again = SimulationConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
        assert again == config


def test_the_servers_first_weights(raw_study: dict[str, Any], tmp_path: Path) -> None:
    """Fresh ones without a file in its folder, the file's otherwise; one of another model is refused."""
    study = study_from(raw_study, "test")
    fresh = build_method(study.method, study.encoder, study.image, study.seed).shared_state()
    assert same(initial_weights(study, tmp_path), fresh)
    assert write_initial(tmp_path, study, earlier(seed=11), "x").adapted == ("pos_embed", "patch_embed.proj.weight")
    found = initial_weights(study, tmp_path)
    assert found.keys() == fresh.keys()
    assert same(parted(found)[0], fitted())
    save_tensors(tmp_path / INITIAL_NAME, {"encoder.norm.weight": torch.ones(3)})
    with pytest.raises(RunError, match=f"{INITIAL_NAME}: holds other tensors than this study's model has"):
        initial_weights(study, tmp_path)


def test_a_run_without_them_has_none(finished: Any) -> None:
    assert not (finished.folder / WEIGHTS_NAME).exists()
    assert not (finished.folder / "arms" / "pretrained-init").exists()
    assert "Supervised from scratch" in (finished.folder / "report.html").read_text()
