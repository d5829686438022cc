"""A small federated pilot of the first candidates on a study's own data, without its test patients."""

import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from advisor.pilot_plan import Plan, Trained, plan_pilot
from advisor.pilot_report import lines, write_record, write_winner
from advisor.verdict import read_findings
from evaluation.arm_table import write_arms
from evaluation.report.page import write_report
from evaluation.stage import evaluate
from federation.study import Study
from foundation.errors import DataError, QuorumError, RunError, TrainingError
from foundation.files import write_json
from foundation.machine import DeviceName, commit, machine, versions
from foundation.messages import logger
from foundation.progress import bar
from foundation.wording import one_line
from simulation.arms import Arm, make_encoder
from simulation.sites.checks import decode_images
from simulation.starting import keep_weights


def pilot(
    study: Study, runs: Path, out: Path, answer: Mapping[str, bool], device: DeviceName, passes: int, command: str
) -> list[str]:
    """Plan, train, judge; writes the pilot's folder below ``runs`` and the winner's study file ``out``.

    Returns what to tell. Errors as ``plan_pilot``; RunError where fewer than two candidates could be trained.
    """
    started = time.monotonic()
    folder = runs / f"pilot-{study.name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    if folder.exists():
        raise RunError(f"{folder}: exists already; wait a second")
    try:
        plan = plan_pilot(study, folder, answer, device, passes)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)  # nothing was trained yet
        raise
    trained = train(plan, device, command)
    arms = {name: plan.arms[name].name for name, each in trained.items() if not each.failed}
    findings = read_findings(folder, arms, plan.judge)
    seconds = time.monotonic() - started
    write_record(plan, trained, findings, passes, seconds)
    write_winner(out, plan, findings, command)
    report = write_report(folder)
    return [
        *lines(plan, trained, findings, passes, seconds),
        "",
        f"study file: {out}",
        f"record: {folder}",
        f"report: {report}",
    ]


def train(plan: Plan, device: DeviceName, command: str) -> dict[str, Trained]:
    """Pretrain every candidate, score all encoders; what came of each, by name. RunError where fewer than 2 trained."""
    facts: dict[str, Any] = {
        "name": f"{plan.study.name}-pilot",
        "title": f"Pilot for {plan.study.title or plan.study.name}",
    }
    facts |= {"demonstration": True, "seed": plan.study.seed, "command": command}
    facts |= {"versions": versions(), "machine": machine(), "commit": commit()}
    write_json(plan.folder / "run.json", facts)
    first = next(iter(plan.arms.values()))
    keep_weights(plan.folder, plan.config, first.study)
    make_encoder(plan.folder, plan.base, plan.config, device)
    trained: dict[str, Trained] = {}
    with bar("candidates", len(plan.arms)) as line:
        for name, arm in plan.arms.items():
            line.describe(f"pretraining {name}")
            trained[name] = _pretrain(plan, arm, device)
            line.advance()
    done = [plan.arms[name] for name, each in trained.items() if not each.failed]
    if len(done) < 2:
        why = "; ".join(f"{name}: {each.failed}" for name, each in trained.items() if each.failed)
        raise RunError(f"{plan.folder}: {len(done)} of {len(trained)} candidates could be pretrained ({why})")
    write_arms(plan.folder, [arm.place for arm in (plan.base, *done)])
    evaluate(plan.folder)
    return trained


def _pretrain(plan: Plan, arm: Arm, device: DeviceName) -> Trained:
    """A candidate that cannot be trained on these images is an outcome of the pilot, not its end."""
    assert arm.sites is not None
    started = time.monotonic()
    try:
        decode_images(arm.study, arm.sites, plan.images, plan.folder / "store")
        make_encoder(plan.folder, arm, plan.config, device)
    except (DataError, TrainingError, QuorumError) as error:
        logger.warning(f"{arm.name}: {one_line(str(error))}")
        return Trained(time.monotonic() - started, one_line(str(error)))
    return Trained(time.monotonic() - started)
