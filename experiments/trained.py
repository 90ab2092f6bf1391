"""A run of an experiment: trained, continued where it was stopped, or taken as it is."""

from collections.abc import Sequence
from pathlib import Path

from pit_jax.study.collect import Run


def trained(spec: str, words: Sequence[str], workdir: Path) -> Run:
    """The run of a config in `workdir`, which is trained as far as it is not.

    Args:
      spec: FILE[:ARG] of the config.
      words: overrides, "--config.a.b=value".
      workdir: the run directory.

    Raises:
      ConfigError: if the directory holds a run of another config, which stays as it is.
      Stopped: after a SIGTERM or Ctrl-C, once the state is saved.
    """
    from pit_jax import configfile
    from pit_jax.study.collect import collect
    from pit_jax.train import train

    train(configfile.load(spec, words), workdir)
    return collect([workdir]).runs[0]


def seconds(run: Run) -> float:
    """What a run took from each of its starts to its last row, evaluations included."""
    return 3600 * (run.device_hours or 0) / run.environments[-1]["device_count"]
