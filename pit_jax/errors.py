"""What can go wrong for a person, and the exit code each of it ends with.

A `PitError` is printed as one line: what is wrong, where, what to write instead. Any
other exception is a bug and keeps its traceback (exit code 1).
"""

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class PitError(Exception):
    """Base of every error that is explained to the user in one line."""

    exit_code = 2


class ConfigError(PitError):
    """Wrong usage or configuration: the same command can never succeed (exit code 2)."""


class NotOffered(ConfigError):
    """This model or task has nothing of what was asked for; others do."""


class NonFiniteLoss(PitError):
    """The loss or the gradient norm became NaN or infinite (exit code 3)."""

    exit_code = 3


class DoesNotFit(PitError):
    """A step needs more memory than a chip has (exit code 4)."""

    exit_code = 4


class PeerLost(PitError):
    """Another process of the run is gone (exit code 134, as jax.distributed aborts the others)."""

    exit_code = 134


class StorageError(PitError):
    """A file could not be written or read back intact (exit code 5)."""

    exit_code = 5


# The same command would end so again: nobody who starts runs tries these once more.
FINAL = (ConfigError.exit_code, NonFiniteLoss.exit_code, DoesNotFit.exit_code)
# A stop that somebody asked for, after saving: the same command goes on.
ASKED = (EXIT_PREEMPTED, EXIT_INTERRUPTED)


class StopAsked(Exception):
    """A stop was asked for in the middle of an evaluation: the trainer saves and leaves."""

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal


class Stopped(Exception):
    """The run was asked to stop, saved its state and ends with `exit_code` (75 or 130)."""

    def __init__(self, exit_code: int, message: str):
        super().__init__(message)
        self.exit_code = exit_code
