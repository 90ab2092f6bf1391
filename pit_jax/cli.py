"""The command `pit-jax`: one verb a function; it parses, calls and prints.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from pit_jax import grammar, launch_grammar, printing
from pit_jax.errors import (
    EXIT_BUG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    ConfigError,
    PeerLost,
    PitError,
    Stopped,
    StorageError,
)

_PRINT = ("show", "preflight", "bench", "eval", "compare")  # of which nothing else may be left
_LONGEST = 900  # characters of a line that says what is wrong


def train(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Train a config; goes on by itself where the work directory holds an earlier start."""
    from pit_jax import beat, configfile, validation
    from pit_jax.parallel import processes

    beat.print_stacks_when_asked()
    profile = _profile(args.profile)
    config = configfile.load(args.config, overrides)
    devices, launch = validation.cpu_devices(config), config.launch
    processes.start(launch.heartbeat_s, config.train.deterministic, devices, launch.hang_s)
    from pit_jax.train import train as run

    run(config, args.workdir, profile)


def evaluate(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run every evaluation of a run's task, or probes, on a checkpoint."""
    from pit_jax import configfile, rundir, validation
    from pit_jax.parallel import processes

    if args.samples and (args.probe or args.locality or args.step is not None):
        raise ConfigError("--samples are of one checkpoint: leave --step and other measures out")
    config = rundir.RunDir(args.workdir).config()
    config = validation.resolve(configfile.override(config, overrides))
    heartbeat_s, deterministic = config.launch.heartbeat_s, config.train.deterministic
    processes.start(heartbeat_s, deterministic, validation.cpu_devices(config))
    if args.samples:
        from pit_jax.sample_metrics import measure

        found = measure(config, args.workdir, args.samples)
    else:
        from pit_jax.evaluate import evaluate as run

        which = [*args.probe, *(["locality"] if args.locality else [])]
        found = run(config, args.workdir, args.step, which=which)
    for name, value in found.items():
        if not name.startswith("eval/locality/"):  # which came as a table
            print(f"{name:26} {value:.6g}")


def sample(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Generate images with a diffusion run; goes on by itself where it was cut off."""
    from pit_jax import configfile, rundir, validation
    from pit_jax.parallel import processes

    options = ("num", "guidance", "steps", "sampler", "seed", "batch_size")
    given = {name: getattr(args, name) for name in options}
    words = [f"--config.sample.{name}={x}" for name, x in given.items() if x is not None]
    config = rundir.RunDir(args.workdir).config()
    config = validation.resolve(configfile.override(config, [*overrides, *words]))
    labels = _labels(args.labels)
    devices = processes.cpu_devices(config.mesh, (validation.sample_batch(config),))
    processes.start(config.launch.heartbeat_s, config.train.deterministic, devices)
    from pit_jax.sample import sample as run

    run(config, args.workdir, args.out, labels, args.step, args.ema)


def show(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print the resolved config, every parameter and the cost; needs no devices."""
    from pit_jax import configfile

    config = configfile.load(args.config, overrides)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from pit_jax.perf.show import show as text

    print(text(config))


def preflight(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Compile a config's steps for a TPU topology that need not be here, and measure them."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: libtpu only compiles here
    from pit_jax.perf import preflight_run

    preflight_run.run(args, overrides)


def bench(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Measure the training step on this machine, alone or against another, or the input."""
    import json

    from pit_jax.perf import bench

    if args.steps < 2:
        raise ConfigError(f"--steps {args.steps}: at least 2")
    if args.against != "torch" and difflib.get_close_matches(args.against or "", ["torch"]):
        raise ConfigError(f"--against {args.against}: did you mean --against torch?")
    if args.json:
        _check_writable(args.json)
    if args.input_only:
        from pit_jax.perf import bench_input

        if args.against:
            raise ConfigError("--input-only is measured against PIL alone: leave out --against")
        result = bench_input.main(args.config, overrides, args.steps)
        print(bench_input.report(result))
    else:
        result = bench.main(args.config, overrides, args.against, args.steps)
        print(bench.report(result))
    if args.json:
        with open(args.json, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")


def sweep(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run every point of a study, or search a space; goes on by itself where it was cut off."""
    from pit_jax import files

    if args.shard is not None and not re.fullmatch("[0-9]{1,18}/[0-9]{1,18}", args.shard):
        raise ConfigError(f"--shard {args.shard[:40] or repr('')}: write K/N such as 0/4")
    if args.search is None and args.storage is not None:
        raise ConfigError("--storage is the database of a --search")
    files.check_place(args.workdir, "--workdir")
    only = args.only if args.only is not None else args.shard
    if args.search is not None:
        from pit_jax.study import search

        if only is not None:
            raise ConfigError("--search: several machines share a --storage, and no --only")
        run = search.plan if args.dry_run else search.search
        words = (args.file, args.workdir, args.search, overrides, args.storage)
        run(*words, args.jobs, args.retries)
        return
    from pit_jax.study import sweep as study

    run = study.plan if args.dry_run else study.sweep
    run(args.file, args.workdir, overrides, args.jobs, only, args.retries)


def compare(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Compare finished runs: a table, statistics, a report."""
    _no_overrides(overrides)
    from pit_jax import files
    from pit_jax.study import compare, export, outputs, report, summary

    made = {
        "csv": (args.csv, export.to_csv),
        "json": (args.json, export.to_json),
        "plot": (args.plot, report.to_svg),
        "out": (args.out, report.to_html),
    }
    outputs.check({flag: path for flag, (path, _) in made.items()}, args.directories)
    found = compare.compare(args.directories, args.baseline, args.metric)
    # All are made before one is written, and written before anything is printed: `| head`
    # takes no file away.
    texts = [(path, make(found)) for path, make in made.values() if path is not None]
    for path, text in texts:
        files.write(path, text)
    summary.show(found)
    for path, _ in texts:
        print(f"written: {path}")


def launch(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Start a run on Cloud TPUs, on GKE or here, keep it going, and look after it."""
    import importlib

    if args.action:
        _no_overrides(overrides)
        from pit_jax.launch import commands

        commands.ACTIONS[args.action](args)
        return
    launch_grammar.check(args)
    target = importlib.import_module(f"pit_jax.launch.{args.target}")
    target.launch(args, overrides)


def weights(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Bring public weights in, or a run's weights out."""
    _no_overrides(overrides)
    os.environ["JAX_PLATFORMS"] = "cpu"  # shapes and copies: no accelerator is taken for them
    from pit_jax.weights import exchange

    if args.direction == "export":
        exchange.export_weights(args.source, args.target, args.format)
    else:
        exchange.import_weights(args.source, args.target, args.config, args.interpolate)


def data_prepare(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Download a data set and write it as ArrayRecord, or a copy of it at another size."""
    _no_overrides(overrides)
    options = ("squash", "split", "out", "shards", "workers", "skip_corrupt")
    given = {name: getattr(args, name) for name in options}
    if args.resize is not None:
        from pit_jax.data.copier import copy

        copy(args.name, args.resize, directory=args.data_dir, **given)
        return
    if words := [name for name, value in given.items() if value not in (None, False)]:
        raise ConfigError(f"--{words[0].replace('_', '-')} is for a copy: add --resize N")
    from pit_jax.data.prepare import prepare

    prepare(args.name, args.data_dir)


def data_latents(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Encode a data set once for diffusion; goes on by itself where it was cut off."""
    from pit_jax import configfile
    from pit_jax.parallel import processes

    config = configfile.load(args.config, overrides)
    batches = () if args.batch_size is None else (args.batch_size,)
    devices = processes.cpu_devices({"data": -1, "fsdp": 1, "seq": 1, "model": 1}, batches)
    processes.start(config.launch.heartbeat_s, config.train.deterministic, devices)
    from pit_jax.encode import encode

    encode(config, args.vae, args.out, args.splits, args.shards, args.batch_size)


def data_stats(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Write what generated images are compared with: a set's statistics, or its images."""
    from pit_jax import configfile
    from pit_jax.parallel import processes

    config = configfile.load(args.config, overrides)
    processes.start(config.launch.heartbeat_s, config.train.deterministic)
    from pit_jax import reference_statistics

    words = (args.out, args.features, args.split, args.num, args.images)
    reference_statistics.write(config, *words)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    return grammar.parser(
        train=train,
        evaluate=evaluate,
        sample=sample,
        show=show,
        preflight=preflight,
        bench=bench,
        sweep=sweep,
        compare=compare,
        launch=launch,
        weights=weights,
        data_prepare=data_prepare,
        data_latents=data_latents,
        data_stats=data_stats,
    )


def run(argv: Sequence[str]) -> int:
    """Runs one command line; returns its exit code and prints errors as one line."""
    try:
        words = parser()
        args, rest = grammar.parse(words, argv)
        if args.verb is None:
            words.print_help()
            return 2 if argv else 0
        _spell_home(args)
        args.function(args, rest)
        if args.verb in _PRINT:
            printing.check()
    except (PitError, Stopped) as error:
        print(f"pit-jax: {_printable(str(error))}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("pit-jax: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except PermissionError as error:  # wherever it comes up: a file is somebody else's
        if error.filename is None:
            raise
        reason = error.strerror or "permission denied"
        print(f"pit-jax: {_printable(f'{error.filename}: {reason}')}", file=sys.stderr, flush=True)
        return StorageError.exit_code
    except Exception as error:
        from pit_jax.parallel import processes

        if lost := processes.lost_another(error):
            print(f"pit-jax: {lost}", file=sys.stderr, flush=True)
            return PeerLost.exit_code
        from pit_jax import files

        if not files.of_driver(error):
            raise
        reason = _printable(" ".join(str(error).split()) or type(error).__name__)
        print(f"pit-jax: what lies in the cloud was not reached: {reason}", file=sys.stderr)
        return StorageError.exit_code
    return 0


def main() -> NoReturn:
    from pit_jax.parallel import processes

    printing.prepare()
    if {"train", "eval", "sample"} & set(sys.argv[1:2]):
        processes.restart_with_huge_pages()
    try:
        code = run(sys.argv[1:])
    except Exception:
        processes.leave_alone(EXIT_BUG, traceback.format_exc())
        raise
    if code not in (EXIT_DONE, EXIT_PREEMPTED, EXIT_INTERRUPTED):
        processes.leave_alone(code)
    sys.exit(code)


_LABELS = ("balanced", "random", "unconditional")


def _spell_home(args: argparse.Namespace) -> None:
    """Puts the home directory in place of `~` in every argument: of --out=~/x no shell does."""
    for name, value in vars(args).items():
        if isinstance(value, str) and value.startswith("~"):
            setattr(args, name, os.path.expanduser(value))
        elif isinstance(value, list | tuple) and any(isinstance(x, str) for x in value):
            setattr(args, name, [os.path.expanduser(x) if x.startswith("~") else x for x in value])


def _labels(words: Sequence[str] | None) -> str | list[int] | None:
    """What --labels says: a name, or numbers."""
    if words is None or (len(words) == 1 and words[0] in _LABELS):
        return words[0] if words else None
    if not all(word.isdecimal() for word in words):
        raise ConfigError(
            f"--labels {' '.join(words)}: write class numbers, balanced, random, or unconditional"
        )
    return [int(word) for word in words]


def _check_writable(path: str, flag: str = "json") -> None:
    """Refuses a file that cannot be written, before anything is measured for it."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise ConfigError(f"--{flag} {path} cannot be written")


def _printable(text: str) -> str:
    """One line, whatever was quoted in it: not endless, and nothing that moves the cursor."""
    text = re.sub(r"\S{401,}", lambda word: f"{word[0][:200]}…", text)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    # What to write instead stands at the end.
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 3 :]}"


def _no_overrides(words: Sequence[str]) -> None:
    if words:
        raise ConfigError(f"unexpected argument {words[0]}")


def _profile(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile {text}: write FIRST:LAST, e.g. 10:15")
    return int(first), int(last)


if __name__ == "__main__":
    main()
