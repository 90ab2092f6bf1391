"""The grammar of the command line: verbs, their arguments, and what a wrong one is told."""

import argparse
import difflib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pit_jax import __version__, launch_grammar
from pit_jax.diffusion.names import SAMPLERS
from pit_jax.errors import ConfigError

_SAMPLERS = "; ".join(f"{family}: {', '.join(names)}" for family, names in SAMPLERS.items())


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and ends with exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parser(**functions: Callable) -> Parser:
    """The grammar of the command line.

    Args:
      functions: what each verb calls, by name; the first line of its docstring is the help.
    """
    main = Parser("pit-jax", description=__import__("pit_jax").__doc__, allow_abbrev=False)
    main.add_argument("--version", action="version", version=__version__)
    verbs = main.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def verb(
        name: str, function: Callable, among: Any = verbs, line: str = ""
    ) -> argparse.ArgumentParser:
        help_line = line or function.__doc__.splitlines()[0]
        sub = among.add_parser(name, help=help_line, description=help_line, allow_abbrev=False)
        sub.set_defaults(function=function, parser=sub)
        return sub

    def config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--config",
            required=True,
            metavar="FILE[:ARG]",
            help="e.g. configs/digits.py:pit; override a field with --config.optim.lr=1e-3",
        )

    sub = verb("train", functions["train"])
    config(sub)
    sub.add_argument(
        "--workdir", required=True, metavar="DIR", help="run directory, local or gs://"
    )
    sub.add_argument(
        "--profile", metavar="FIRST:LAST", help="write a profiler trace of these steps"
    )
    sub = verb("eval", functions["evaluate"])
    sub.add_argument("--workdir", required=True, metavar="DIR")
    sub.add_argument("--step", type=int, help="the checkpoint; the newest by default")
    sub.add_argument(
        "--probe",
        nargs="+",
        default=(),
        choices=("linear", "knn", "fewshot"),
        help="probe the representation instead, whatever the task",
    )
    sub.add_argument(
        "--locality",
        action="store_true",
        help="measure how local the model is instead: attention distance, positions,"
        " receptive field, accuracy on changed images",
    )
    sub.add_argument(
        "--samples",
        metavar="FILE|DIR",
        help="measure what `pit-jax sample` wrote instead, with config.eval.features",
    )
    sub = verb("sample", functions["sample"])
    sub.add_argument("--workdir", required=True, metavar="DIR", help="run directory")
    sub.add_argument("--out", required=True, metavar="DIR", help="of the images")
    sub.add_argument("--num", type=int, metavar="N", help="images")
    sub.add_argument("--guidance", type=float, metavar="SCALE", help="classifier-free; 1 = none")
    sub.add_argument("--steps", type=int, metavar="N", help="of the sampler")
    sub.add_argument("--sampler", metavar="NAME", help=_SAMPLERS)
    sub.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="class numbers, taken in turn; or balanced, random or unconditional; by default"
        " config.sample.labels",
    )
    sub.add_argument("--seed", type=int, metavar="N", help="image i is a function of (seed, i)")
    sub.add_argument("--batch-size", type=int, metavar="N", help="images at once")
    sub.add_argument("--step", type=int, help="the checkpoint; the newest by default")
    sub.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="sample from the weights' moving average; by default if there is one",
    )
    sub = verb("show", functions["show"])
    config(sub)
    sub = verb("preflight", functions["preflight"])
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
    sub = verb("bench", functions["bench"])
    config(sub)
    sub.add_argument(
        "--against",
        metavar="torch|FILE[:ARG]",
        help="alternate with the same in PyTorch, or with another config (same overrides)",
    )
    sub.add_argument(
        "--input-only",
        action="store_true",
        help="measure what one core decodes, crops and resizes instead, beside PIL",
    )
    sub.add_argument(
        "--steps", type=int, default=10, metavar="N", help="steps, or half seconds of them"
    )
    sub.add_argument("--json", metavar="OUT", help="also write the result there")
    sub = verb("sweep", functions["sweep"])
    sub.add_argument("file", metavar="FILE[:ARG]", help="Python file that defines sweep()")
    sub.add_argument("--workdir", required=True, metavar="DIR", help="of the sweep, local or gs://")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once")
    part = sub.add_mutually_exclusive_group()
    part.add_argument(
        "--only",
        metavar="INDEX|K/N",
        help="one point, or a share of them, and what they start from; shares are 0/N, 1/N, ...",
    )
    part.add_argument("--shard", metavar="K/N", help="the same for a share")
    sub.add_argument("--dry-run", action="store_true", help="print the points, touch nothing")
    sub.add_argument(
        "--retries", type=int, default=2, metavar="N", help="how often a failed run starts again"
    )
    sub.add_argument(
        "--search", type=int, metavar="TRIALS", help="search the file's space() by Optuna instead"
    )
    sub.add_argument(
        "--storage", metavar="URL", help="database of a search; search.db in the directory"
    )
    sub = verb("compare", functions["compare"])
    sub.add_argument("directories", nargs="+", metavar="DIR", help="of a run, or of a sweep")
    sub.add_argument("--out", metavar="FILE.html", help="write a report: one file, with plots")
    sub.add_argument("--csv", metavar="FILE", help="write one row a run")
    sub.add_argument("--json", metavar="FILE", help="write the comparison")
    sub.add_argument("--plot", metavar="FILE.svg", help="write the report's key plot")
    sub.add_argument(
        "--baseline", default="", metavar="LABEL", help="what differences are from; the first"
    )
    sub.add_argument(
        "--metric", default="", metavar="NAME", help="e.g. eval/accuracy, the task's by default"
    )
    sub = verb("weights", functions["weights"])
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
    launch_grammar.add(lambda name, line: verb(name, functions["launch"], line=line))
    help_line = "Prepare data sets, and what belongs to them."
    data = verbs.add_parser("data", help=help_line, description=help_line, allow_abbrev=False)
    data = data.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    sub = verb("prepare", functions["data_prepare"], data)
    sub.add_argument(
        "name", help="a TensorFlow Datasets name, e.g. cifar100; to resize also folder or digits"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="default: $TFDS_DATA_DIR")
    sub.add_argument(
        "--resize",
        type=int,
        metavar="N",
        help="write a copy at N × N pixels: the shorter side becomes N, the centre is cut out",
    )
    sub.add_argument("--squash", action="store_true", help="squeeze whole images into it instead")
    sub.add_argument("--split", nargs="+", metavar="SPLIT", help="of the copy; all by default")
    sub.add_argument("--out", metavar="DIR", help="where the copy NAME@N is put; the data dir")
    sub.add_argument("--shards", type=int, metavar="N", help="files of a split")
    sub.add_argument("--workers", type=int, metavar="N", help="processes; one a core")
    sub.add_argument(
        "--skip-corrupt", action="store_true", help="leave out images that cannot be decoded"
    )
    sub = verb("latents", functions["data_latents"], data)
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
    sub = verb("stats", functions["data_stats"], data)
    config(sub)
    sub.add_argument("--out", required=True, metavar="FILE.npz")
    sub.add_argument(
        "--features", default="", metavar="FILE|DIR", help="FID's Inception, or a classifier's run"
    )
    sub.add_argument("--images", action="store_true", help="write the images and no statistics")
    sub.add_argument("--split", help="the training split by default")
    sub.add_argument("--num", type=int, metavar="N", help="images, from all over the set")
    return main


def check_flags(words: Sequence[str], verb: argparse.ArgumentParser) -> None:
    """Refuses flags that are none of the verb's; overrides and their values pass."""
    for before, word in itertools.pairwise(["", *words]):
        is_override = word.lstrip("-").startswith(("config.", "noconfig."))
        is_value = before.startswith("--") and "=" not in before and not word.startswith("--")
        if not is_override and not is_value:
            known = sorted(set(re.findall(r"--[a-z][\w-]*", verb.format_usage())))
            near = difflib.get_close_matches(word.split("=")[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unexpected argument {word}{hint}")
