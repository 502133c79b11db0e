"""Run `permix study`: train every arm with every seed, run the same evaluations on all models, and write a report.

    OUT/study.json                 the study's configuration at the newest start: permix study OUT/study.json resumes the study
    OUT/base/EVALUATION/           an evaluation of the untrained model
    OUT/ARM-SEED/train/            a training
    OUT/ARM-SEED/EVALUATION/       an evaluation of its model
    OUT/ARM-SEED/unit.json         the settings of the unit's parts, which are finished, and the fingerprint of the model
    OUT/ARM-SEED/log.txt           the output of the unit's processes
    OUT/report/                    the report of everything that is finished
    OUT/report-only/               the report of what --only and --seeds choose
    OUT/ARM-SEED/other-weights-*/  evaluations of an earlier training of the unit whose weights were others

Every part is an ordinary run directory; its config.json can be run alone. One process at a time works on a unit, and claims the
unit's folder first (`permix.storage.workers.claim_folder`). So several commands, also on machines that share OUT, divide a study
among them. Finished parts are skipped; an interrupted part resumes like its own command. A model may be deleted when all
evaluations of it are finished.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from permix.config import TRAIN_PART, StudyConfig, StudyUnit
from permix.errors import ConfigError, IncompleteRunError, PermixError
from permix.pipelines.jobs import CLAIM_VARIABLE, Job, JobFailure, run_jobs, thread_arguments
from permix.pipelines.study_cost import check_study
from permix.pipelines.study_units import (
    check_same_settings,
    delete_model,
    finished_parts,
    has_model,
    pending_parts,
    read_unit_record,
    record_model,
    require_content,
    run_unit,
)
from permix.progress import add_result, print_status
from permix.report.study import write_study_report
from permix.storage.files import write_json
from permix.storage.workers import claim_folder, hold_shared_files, holds_claim, is_claimed

STUDY_FILE = "study.json"


def run_study(config: StudyConfig) -> Path | None:
    """Run or resume the units that `only`, `only_seeds` and `unit` choose, and write the study's report.

    Returns the path of the report's page; None if there is no report, because nothing is finished or `unit` is given.

    Raises ConfigError, before anything is started, for settings that differ from those of a part that was started, and if a part
    is pending whose data or verifier would differ from those of the recorded parts. Raises
    PermixError at the end if units have failed, and IncompleteRunError if units are pending.
    """
    require_content(config)
    check_same_settings(config)
    if config.report:
        return report_study(config)
    if config.unit is not None:
        _run_chosen_unit(config, config.chosen_units()[0])
        return None
    check_study(config)
    _write_study_file(config)
    chosen = config.chosen_units()
    waiting = [unit for unit in chosen if pending_parts(unit)]
    print_status(
        f"study {config.out}: {len(chosen) - len(waiting)} of {len(chosen)} units are finished; stop it at any time and start it "
        "again to go on"
    )
    failed = _run_units(config, waiting)
    unsettled: dict[str, PermixError] = {}
    for unit in chosen:
        try:
            _settle(config, unit)
        except PermixError as error:  # of one unit: the report has the others
            unsettled[unit.name] = error
    page = report_study(config)
    _require_finished(config, chosen, failed, unsettled)
    return page


def _run_chosen_unit(config: StudyConfig, unit: StudyUnit) -> None:
    """Run the unit in this process, after the check that the study's own command has made for the processes that it starts."""
    if not _has_inherited_claim(unit):
        if is_claimed(unit.folder):
            raise _other_process_error(unit)
        check_study(config)
        _write_study_file(config)
    with _claimed(unit):
        try:
            run_unit(config, unit)
        finally:
            add_result(paths={"study": config.out, "unit": unit.folder}, pending=int(not _is_finished(unit)), failed=[])


def _write_study_file(config: StudyConfig) -> None:
    with hold_shared_files(config.out):
        write_json(config.out / STUDY_FILE, without_choice(config))


def _settle(config: StudyConfig, unit: StudyUnit) -> None:
    """Do what a unit's process that was killed, or a training that another command ended, has left: record the training, and
    delete its model. Does nothing while another process works on the unit.
    """
    if unit.training is None or not has_model(unit):
        return
    descriptor = claim_folder(unit.folder)
    if descriptor is None:
        return
    try:
        if TRAIN_PART not in read_unit_record(unit).finished:
            record_model(unit)
        if not config.keep_models:
            delete_model(unit)
    finally:
        os.close(descriptor)


def _run_units(config: StudyConfig, units: Sequence[StudyUnit]) -> list[JobFailure]:
    """Run these units, `config.jobs` at a time, each by `permix study OUT/study.json --unit NAME`. Returns those that failed."""
    more = thread_arguments(config.threads, config.jobs)
    jobs = [
        Job(
            unit.name, ["study", str(config.out / STUDY_FILE), "--unit", unit.name, *more], unit.folder / "log.txt",
            partial(_is_finished, unit), claimed_folder=unit.folder,
        )
        for unit in units
    ]  # fmt: skip
    return run_jobs(jobs, config.jobs)


def _is_finished(unit: StudyUnit) -> bool:
    return not pending_parts(unit)


def without_choice(config: StudyConfig) -> StudyConfig:
    """The study without the choices that hold for one start only."""
    return config.model_copy(update={"only": (), "only_seeds": (), "unit": None, "jobs": 1, "threads": None, "report": False})


def _require_finished(
    config: StudyConfig, chosen: Sequence[StudyUnit], failed: Sequence[JobFailure], unsettled: Mapping[str, PermixError]
) -> None:
    """Raise PermixError or IncompleteRunError if chosen units are not finished; `unsettled`: errors of `_settle` by unit."""
    pending = [unit for unit in chosen if pending_parts(unit) or unit.name in unsettled]
    texts = {one.job: one.text for one in failed}
    broken = {one.job: one.text for one in failed if one.exit_code != IncompleteRunError.exit_code}
    broken = {name: f"{name}: {error}" for name, error in unsettled.items()} | broken
    add_result(paths={"study": config.out}, pending=len(pending), failed=list(texts | broken))
    if not pending:
        return
    if broken:
        raise PermixError(
            f"{config.out}: {len(pending)} of {len(chosen)} units are not finished; failed: {'; '.join(broken.values())}; "
            "run the same command again to go on with them"
        )
    why = "; ".join(texts.values()) or "other processes are running them"
    names = ", ".join(unit.name for unit in pending)
    raise IncompleteRunError(
        f"{config.out}: {len(pending)} of {len(chosen)} units are not finished ({names}): {why}", len(pending)
    )


@contextmanager
def _claimed(unit: StudyUnit) -> Iterator[StudyUnit]:
    """The unit, claimed by this process within the block. Raises ConfigError if another process has claimed it."""
    if _has_inherited_claim(unit):
        yield unit
        return
    descriptor = claim_folder(unit.folder)
    if descriptor is None:
        raise _other_process_error(unit)
    try:
        yield unit
    finally:
        os.close(descriptor)


def _other_process_error(unit: StudyUnit) -> ConfigError:
    return ConfigError(f'unit = "{unit.name}": another process is running this unit; wait for it, or give another unit')


def _has_inherited_claim(unit: StudyUnit) -> bool:
    """Whether this process was started for the unit by `run_jobs`, which has claimed it."""
    inherited = os.environ.get(CLAIM_VARIABLE, "")
    return inherited.isdigit() and holds_claim(unit.folder, int(inherited))


def report_study(config: StudyConfig) -> Path | None:
    """Write the report of everything that is finished; several commands that end at the same time do it one after the other.

    Returns the path of its page; None if no evaluation is finished.

    With `report`, `only` and `only_seeds` choose what it has, and it goes to a folder of its own, report-only/.
    """
    units = config.chosen_units() if config.report else config.units()
    finished = {unit.name: finished_parts(unit) for unit in units}
    if not any(set(parts) - {TRAIN_PART} for parts in finished.values()):
        print_status(f"study {config.out}: no evaluation is finished, so there is no report yet")
        return None
    with hold_shared_files(config.report_folder):
        write_study_report(config, finished, config.report_folder, units)
    return config.report_folder / "index.html"
