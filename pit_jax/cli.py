"""The command `pit-jax`: one verb a function; it parses, calls and prints.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pit_jax import __version__
from pit_jax.errors import EXIT_BUG, EXIT_INTERRUPTED, ConfigError, PitError, Stopped


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and ends with exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def train(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Train a config; goes on by itself where the work directory holds an earlier start."""
    from pit_jax import configfile, validation
    from pit_jax.parallel import processes

    profile = _profile(args.profile)
    config = configfile.load(args.config, overrides)
    heartbeat_s, deterministic = config.launch.heartbeat_s, config.train.deterministic
    processes.start(heartbeat_s, deterministic, validation.cpu_devices(config))
    from pit_jax.train import train as run

    run(config, args.workdir, profile)


def evaluate(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run every evaluation of a run's task, or probes, on a checkpoint."""
    from pit_jax import configfile, rundir, validation
    from pit_jax.parallel import processes

    config = configfile.override(rundir.RunDir(args.workdir).config(), overrides)
    heartbeat_s, deterministic = config.launch.heartbeat_s, config.train.deterministic
    processes.start(heartbeat_s, deterministic, validation.cpu_devices(config))
    from pit_jax.evaluate import evaluate as run

    for name, value in run(config, args.workdir, args.step, which=args.probe).items():
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
    batch = config.sample.batch_size or config.eval.batch_size or config.train.batch_size
    devices = processes.cpu_devices(config.mesh, (batch,))
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
    """Measure the training step on this machine, alone, against PyTorch or another config."""
    import json

    from pit_jax.perf import bench

    if args.steps < 2:
        raise ConfigError(f"--steps {args.steps}: at least 2")
    if args.json:
        _check_writable(args.json)
    result = bench.main(args.config, overrides, args.against, args.steps)
    print(bench.report(result))
    if args.json:
        with open(args.json, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")


def weights(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Bring public weights in, or a run's weights out."""
    from pit_jax.parallel import processes

    _no_overrides(overrides)
    processes.choose_platform()
    from pit_jax.weights import exchange

    if args.direction == "export":
        exchange.export_weights(args.source, args.target, args.format)
    else:
        exchange.import_weights(args.source, args.target, args.config, args.interpolate)


def data_prepare(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Download a data set and write it as ArrayRecord."""
    _no_overrides(overrides)
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


def parser() -> Parser:
    """The grammar of the command line."""
    main = Parser("pit-jax", description=__import__("pit_jax").__doc__, allow_abbrev=False)
    main.add_argument("--version", action="version", version=__version__)
    verbs = main.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def verb(name: str, function: Callable, among: Any = verbs) -> argparse.ArgumentParser:
        help_line = function.__doc__.splitlines()[0]
        sub = among.add_parser(name, help=help_line, description=help_line, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    def config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--config",
            required=True,
            metavar="FILE[:ARG]",
            help="e.g. configs/digits.py:pit; override a field with --config.optim.lr=1e-3",
        )

    sub = verb("train", train)
    config(sub)
    sub.add_argument(
        "--workdir", required=True, metavar="DIR", help="run directory, local or gs://"
    )
    sub.add_argument(
        "--profile", metavar="FIRST:LAST", help="write a profiler trace of these steps"
    )
    sub = verb("eval", evaluate)
    sub.add_argument("--workdir", required=True, metavar="DIR")
    sub.add_argument("--step", type=int, help="the checkpoint; the newest by default")
    sub.add_argument(
        "--probe",
        nargs="+",
        default=(),
        choices=("linear", "knn", "fewshot"),
        help="probe the representation instead, whatever the task",
    )
    sub = verb("sample", sample)
    sub.add_argument("--workdir", required=True, metavar="DIR", help="run directory")
    sub.add_argument("--out", required=True, metavar="DIR", help="of the images")
    sub.add_argument("--num", type=int, metavar="N", help="images")
    sub.add_argument("--guidance", type=float, metavar="SCALE", help="classifier-free; 1 = none")
    sub.add_argument("--steps", type=int, metavar="N", help="of the sampler")
    sub.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, dpm++; of a flow euler, heun")
    sub.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="class numbers, taken in turn; or balanced (default), or unconditional",
    )
    sub.add_argument("--seed", type=int, metavar="N", help="image i is a function of (seed, i)")
    sub.add_argument("--batch-size", type=int, metavar="N", help="images at once")
    sub.add_argument("--step", type=int, help="the checkpoint; the newest by default")
    sub.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="sample from the weights' moving average; by default if there is one",
    )
    sub = verb("show", show)
    config(sub)
    sub = verb("preflight", preflight)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE[:ARG]")
    what.add_argument("--all", action="store_true", help="every config in configs/, as a table")
    sub.add_argument("--topology", required=True, metavar="NAME", help="e.g. v5e-256")
    sub.add_argument("--slices", type=int, default=1, metavar="N", help="of that topology")
    sub.add_argument(
        "--find-batch", action="store_true", help="find the largest batch, or what makes it fit"
    )
    sub.add_argument("--price-per-chip-hour", type=float, metavar="PRICE")
    sub.add_argument("--json", metavar="OUT", help="also write what was found to this file")
    sub = verb("bench", bench)
    config(sub)
    sub.add_argument(
        "--against",
        metavar="torch|FILE[:ARG]",
        help="alternate with the same in PyTorch, or with another config (same overrides)",
    )
    sub.add_argument(
        "--steps", type=int, default=10, metavar="N", help="steps, or half seconds of them"
    )
    sub.add_argument("--json", metavar="OUT", help="also write the result there")
    sub = verb("weights", weights)
    sub.add_argument("direction", choices=("import", "export"))
    sub.add_argument("source", help="import: .safetensors file or directory; export: run directory")
    sub.add_argument("target", help="file or directory to write")
    sub.add_argument("--config", metavar="FILE[:ARG]", help="import: the model it becomes")
    sub.add_argument(
        "--format",
        choices=("pit_jax", "huggingface", "public"),
        default="huggingface",
        help="of an export",
    )
    sub.add_argument(
        "--interpolate",
        action="store_true",
        help="import: resample learned positions to another image size",
    )
    help_line = "Prepare data sets, and what belongs to them."
    data = verbs.add_parser("data", help=help_line, description=help_line, allow_abbrev=False)
    data = data.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    sub = verb("prepare", data_prepare, data)
    sub.add_argument("name", help="a TensorFlow Datasets name, e.g. cifar100")
    sub.add_argument("--data-dir", metavar="DIR", help="default: $TFDS_DATA_DIR")
    sub = verb("latents", data_latents, data)
    config(sub)
    sub.add_argument(
        "--vae",
        required=True,
        metavar="FILE|DIR",
        help="an autoencoder: ours, diffusers' or latent diffusion's, or the directory of a run",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="of the latents")
    sub.add_argument(
        "--splits",
        nargs="+",
        default=(),
        metavar="SPLIT",
        help="the config's training and evaluation split by default",
    )
    sub.add_argument("--shards", type=int, metavar="N", help="files of a split")
    sub.add_argument("--batch-size", type=int, metavar="N", help="images at once; 32 a device")
    sub = verb("stats", data_stats, data)
    config(sub)
    sub.add_argument("--out", required=True, metavar="FILE.npz")
    sub.add_argument(
        "--features", default="", metavar="FILE|DIR", help="FID's Inception, or a classifier's run"
    )
    sub.add_argument("--images", action="store_true", help="write the images and no statistics")
    sub.add_argument("--split", help="the training split by default")
    sub.add_argument("--num", type=int, metavar="N", help="images, from all over the set")
    return main


def run(argv: Sequence[str]) -> int:
    """Runs one command line; returns its exit code and prints errors as one line."""
    try:
        grammar = parser()
        args, rest = grammar.parse_known_args(argv)
        if args.verb is None:
            grammar.print_help()
            return 2 if argv else 0
        _check_flags(rest)
        args.function(args, rest)
    except (PitError, Stopped) as error:
        print(f"pit-jax: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("pit-jax: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `pit-jax show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BUG
    return 0


def main() -> NoReturn:
    from pit_jax.parallel import processes

    if {"train", "eval", "sample"} & set(sys.argv[1:2]):
        processes.restart_with_huge_pages()
    sys.exit(run(sys.argv[1:]))


def _check_flags(words: Sequence[str]) -> None:
    """Refuses flags that are none of the verb's; overrides and their values pass."""
    for before, word in itertools.pairwise(["", *words]):
        is_override = word.lstrip("-").startswith(("config.", "noconfig."))
        is_value = before.startswith("--") and "=" not in before and not word.startswith("--")
        if not is_override and not is_value:
            known = ("--config", "--workdir", "--profile", "--step", "--probe")
            known += ("--topology", "--slices", "--against", "--out", "--num", "--guidance")
            known += ("--vae", "--splits", "--shards", "--batch-size")
            near = difflib.get_close_matches(word.split("=")[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unexpected argument {word}{hint}")


def _labels(words: Sequence[str] | None) -> str | list[int] | None:
    """What --labels says: a name, or numbers."""
    if words is None or (len(words) == 1 and words[0] in ("balanced", "unconditional")):
        return words[0] if words else None
    if not all(word.isdigit() for word in words):
        raise ConfigError(
            f"--labels {' '.join(words)}: write class numbers, balanced, or unconditional"
        )
    return [int(word) for word in words]


def _check_writable(path: str) -> None:
    """Refuses a file that cannot be written, before anything is measured for it."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json {path} cannot be written")


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
