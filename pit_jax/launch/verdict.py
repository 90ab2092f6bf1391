"""What a worker that does not lead says of its end, where the whole run has to end so.

Process 0 sees of it only that somebody is missing, and would wait for them, and try again. The
start-up script writes the same file where a worker cannot even begin.
"""

import contextlib
import json

from pit_jax import files
from pit_jax.errors import PitError
from pit_jax.rundir import RunDir

FOLDER = "verdicts"


def write(run: RunDir, worker: str, launch: str, code: int, reason: str) -> None:
    """Says that `worker` of a launch has ended, and the run with it.

    Raises:
      StorageError: if the file cannot be written.
    """
    said = {"launch": launch, "exit_code": code, "reason": reason}
    run.write(f"{FOLDER}/{worker}.json", json.dumps(said) + "\n")


def read(run: RunDir, launch: str) -> tuple[int, str] | None:
    """The exit code and the reason of the first worker that has ended this launch, if any has.

    What cannot be read says nothing.
    """
    with contextlib.suppress(PitError), files.told(run.path / FOLDER, "read"):
        for path in sorted(run.path.joinpath(FOLDER).iterdir()):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                said = json.loads(path.read_text())
                if said["launch"] == launch:
                    reason = files.printable(str(said["reason"])).partition("\n")[0]
                    return int(said["exit_code"]), f"{path.stem}: {reason}"
    return None
