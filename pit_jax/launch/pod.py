"""What a pod on GKE runs: the worker of worker.py, and what its exit code tells the JobSet.

A run that is given up ends with the code of its last crash, such as 137 after a trainer that
was killed for memory; a pod that is killed ends with the same one. The second has to be
started again, and the first must not be: its status.json is final, so that it would only end
again. So once a run is over every pod ends with a code that never comes from outside, and
status.json keeps the run's own.
"""

import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from pit_jax import printing
from pit_jax.errors import ASKED, EXIT_BUG, EXIT_DONE, FINAL, PeerLost, PitError
from pit_jax.launch import worker
from pit_jax.rundir import RunDir

# Never worth a restart: config, non-finite loss, does not fit; and what is given up: 1, and 134
# of an abort.
FINAL_CODES = (EXIT_BUG, *FINAL, PeerLost.exit_code)
# Saved on a signal, or had one before there was anything to save.
STOPPED_CODES = (*ASKED, 128 + signal.SIGTERM)


def code_of(code: int, run: RunDir, launch: str) -> int:
    """What the pod ends with when its worker ended with `code`.

    Once the run is over, that of status.json, or 1 for a crash; else the worker's own.
    """
    with contextlib.suppress(PitError):  # not known: one restart too many, which ends at once
        status = run.status()
        if status.get("final") and status.get("launch") == launch:
            own = status.get("exit_code")
            return own if own in (EXIT_DONE, *FINAL_CODES) else EXIT_BUG
    return code


def main(argv: Sequence[str] | None = None) -> NoReturn:
    args = worker.parser().parse_args(argv)
    try:
        worker.main(argv)
    except SystemExit as ended:
        code = ended.code
    sys.exit(code_of(code, RunDir(args.workdir), args.launch))


if __name__ == "__main__":
    printing.prepare()
    main()
