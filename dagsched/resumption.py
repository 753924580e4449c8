"""A run continued to its end from the command line: `dagsched resume`.

Responsible for an environment for that, and for what is said of the outcome. Errors of the user's
tasks are part of the outcome; errors of dagsched's own are raised.
"""

import pickle
import sys
import time
from pathlib import Path
from typing import NamedTuple

from dagsched.envfile import read_note
from dagsched.errors import DagschedError
from dagsched.estates import split_run_id
from dagsched.rundir import find_run_directory
from dagsched.runenv import RunEnv, resume

RESULT_CHARACTERS_MAX = 10_000


class ResumeOptions(NamedTuple):
    """What was asked for."""

    run_id: str
    executors: int | None
    metastore: str | None
    output: Path | None
    has_progress: bool


class ResumeReport(NamedTuple):
    """What came of it."""

    run: str
    state: str
    done: int
    total: int
    seconds: float
    result: str | None
    """Its `repr`, cut off if it is long."""

    output: str | None
    error: str | None


def resume_to_end(options: ResumeOptions) -> ResumeReport:
    """Continue a run and wait for its end.

    Raises:
        DagschedError: it can't be continued.
        OSError: the result can't be written.
    """
    from dagsched.progress import wait_for_run

    _look_where_its_client_did(options.run_id)
    started_s = time.monotonic()
    with RunEnv(executors=options.executors, metastore=options.metastore) as env:
        run = resume(env, options.run_id)
        wait_for_run(run, options.has_progress)
        seconds = time.monotonic() - started_s
        error = run.exception()
        text = output = None
        if error is None:
            value = run.result()
            text = _said(value)
            if options.output is not None:
                options.output.write_bytes(_pickled(value))
                output = str(options.output)
        done, total = run.progress()
        said = None if error is None else f"{type(error).__name__}: {error}"
        return ResumeReport(run.run_id, run.state, done, total, seconds, text, output, said)


def _look_where_its_client_did(run_id: str) -> None:
    """Modules of the run's tasks lie where its client found them."""
    found = split_run_id(run_id)
    directory = None if found is None else find_run_directory(found[0])
    note = None if directory is None else read_note(directory)
    for path in () if note is None else note.sys_path:
        if path not in sys.path:
            sys.path.append(path)


def _said(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - it is the user's code
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    rest = len(text) - RESULT_CHARACTERS_MAX
    return text if rest <= 0 else f"{text[:RESULT_CHARACTERS_MAX]}.. ({rest} characters more)"


def _pickled(value: object) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception as error:
        raise DagschedError(f"the result can't be pickled: {error}") from error
