"""Small faults, each put into a copy of the code, where the tests have to notice it.

    .venv/bin/python -m tests.mutations            # every one, by the tests named beside it
    .venv/bin/python -m tests.mutations 3 17       # some
    .venv/bin/python -m tests.mutations 3 --all    # by the whole suite

It prints one line a fault, and ends with 1 if one went unnoticed. To be run before and after
tests are taken away or made quicker: fewer seconds must not mean fewer promises.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Mutation(NamedTuple):
    """A text that stands once in a file of pit_jax, what it becomes, and who notices."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "attention sees what a window hides",
        "models/attention.py",
        "jnp.where(mask.allowed(rows[:, None], columns[None, :]), scores, -1e30)",
        "scores",
        "tests/models/test_windows.py tests/models/test_attention.py",
    ),
    Mutation(
        "the blocked gradient forgets the mask",
        "models/blocked.py",
        "seen = mask.allowed(row[None, :], columns[:, None])",
        "seen = mask.allowed(0 * row[None, :], 0 * columns[:, None])",
        "tests/models/test_attention.py",
    ),
    Mutation(
        "cuDNN's filled keys count",
        "models/attention.py",
        '"key_value_seq_lengths": real}',
        '"key_value_seq_lengths": k.shape[1]}',
        "tests/models/test_attention.py",
    ),
    Mutation(
        "windows are squares",
        "models/mask.py",
        "rows * rows + columns * columns <=",
        "jnp.maximum(rows * rows, columns * columns) <=",
        "tests/models/test_windows.py",
    ),
    Mutation(
        "a conditioned block gates attention by the MLP's gate",
        "models/transformer.py",
        '"attention", gate1)',
        '"attention", gate2)',
        "tests/weights/test_dit.py",
    ),
    Mutation(
        "dropout does not scale what it keeps",
        "models/transformer.py",
        "jnp.where(kept, x / (1 - rate), 0)",
        "jnp.where(kept, x, 0)",
        "tests/models/test_vit.py",
    ),
    Mutation(
        "the masked autoencoder learns what it sees",
        "models/mae.py",
        "return (errors * hidden).sum(-1) / hidden.sum(-1)",
        "return (errors * (1 - hidden)).sum(-1) / (1 - hidden).sum(-1)",
        "tests/models/test_mae.py tests/tasks/test_mae.py",
    ),
    Mutation(
        "v has its sign turned",
        "diffusion/gaussian.py",
        "return signal * noise - sigma * x",
        "return sigma * x - signal * noise",
        "tests/diffusion/test_gaussian.py",
    ),
    Mutation(
        "learned variances run the other way",
        "diffusion/gaussian.py",
        "share = (output[..., x_t.shape[-1] :] + 1) / 2",
        "share = (1 - output[..., x_t.shape[-1] :]) / 2",
        "tests/diffusion/test_gaussian.py",
    ),
    Mutation(
        "the variational bound moves the mean",
        "diffusion/gaussian.py",
        "[jax.lax.stop_gradient(predicted), output[..., channels:]]",
        "[predicted, output[..., channels:]]",
        "tests/diffusion/test_gaussian.py",
    ),
    Mutation(
        "a flow's noise levels run backwards",
        "diffusion/flow.py",
        "return 1 - time / 1000",
        "return time / 1000",
        "tests/diffusion/test_guidance.py tests/diffusion/test_flow.py",
    ),
    Mutation(
        "guidance leads towards no class",
        "diffusion/guidance.py",
        "(weight - 1) * (label - unasked)",
        "(weight - 1) * (unasked - label)",
        "tests/diffusion/test_guidance.py",
    ),
    Mutation(
        "the moving average forgets",
        "step.py",
        "decay * old + (1 - decay) * new",
        "(1 - decay) * old + decay * new",
        "tests/test_step.py",
    ),
    Mutation(
        "parts of a batch count alike whatever they hold",
        "step.py",
        'x * means["loss"].count, grads)',
        "x * 1.0, grads)",
        "tests/tasks/test_accumulate.py",
    ),
    Mutation(
        "every step draws the same",
        "step.py",
        "jax.random.fold_in(jax.random.key(config.train.seed), state.step)",
        "jax.random.key(config.train.seed)",
        "tests/test_step.py tests/data/test_multihost.py",
    ),
    Mutation(
        "biases and norms decay",
        "optim.py",
        "not matches(path, (*optim.freeze, *NO_DECAY_RULES))",
        "not matches(path, tuple(optim.freeze))",
        "tests/test_optim.py",
    ),
    Mutation(
        "layer-wise rates are a layer off",
        "optim.py",
        "layers = jnp.arange(1, depth, dtype=jnp.float32)",
        "layers = jnp.arange(0, depth - 1, dtype=jnp.float32)",
        "tests/test_optim.py",
    ),
    Mutation(
        "gradients are clipped at twice the norm",
        "optim.py",
        "optax.clip_by_global_norm(optim.clip)",
        "optax.clip_by_global_norm(2 * optim.clip)",
        "tests/test_optim.py tests/test_step.py",
    ),
    Mutation(
        "keys are not split over heads' axis",
        "parallel/rules.py",
        '(r"(query|key|value|up)/kernel$", ("fsdp", "model"))',
        '(r"(query|value|up)/kernel$", ("fsdp", "model"))',
        "tests/parallel/test_mesh.py",
    ),
    Mutation(
        "a loss that is not finite goes on",
        "train.py",
        'if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):',
        "if False:",
        "tests/test_outcome.py",
    ),
    Mutation(
        "damaged checkpoints are restored",
        "checkpoint.py",
        "problems = self.verify(step)\n            if not problems:",
        "problems = []\n            if not problems:",
        "tests/test_checkpoint.py",
    ),
    Mutation(
        "the lease is not asked before a file is written",
        "rundir.py",
        "self.guard()\n        files.write(self.path / name, content)",
        "files.write(self.path / name, content)",
        "tests/test_lease.py tests/test_rundir.py",
    ),
    Mutation(
        "final exits are retried",
        "errors.py",
        "FINAL = (ConfigError.exit_code, NonFiniteLoss.exit_code, DoesNotFit.exit_code)",
        "FINAL = (ConfigError.exit_code, DoesNotFit.exit_code)",
        "tests/launch/test_supervisor.py tests/launch/test_pod.py",
    ),
    Mutation(
        "every epoch comes in the same order",
        "data/order.py",
        "np.random.Philox(key=(seed, epoch))",
        "np.random.Philox(key=(seed, 0))",
        "tests/data/test_pipeline.py",
    ),
    Mutation(
        "16-bit levels keep their low byte",
        "data/decode.py",
        "(levels >> (bits - 8)).astype(np.uint8)",
        "(levels & 255).astype(np.uint8)",
        "tests/data/test_decode.py",
    ),
    Mutation(
        "other classes are not noticed",
        "data/identity.py",
        "if classes and (differ := difference(known.classes, classes)):",
        "if False and (differ := difference(known.classes, classes)):",
        "tests/data/test_identity.py",
    ),
    Mutation(
        "pixels are normalised with the mean added",
        "data/augmentation.py",
        "(jnp.asarray(images, jnp.float32) / 255 - mean) / std",
        "(jnp.asarray(images, jnp.float32) / 255 + mean) / std",
        "tests/data/test_augmentation.py",
    ),
    Mutation(
        "Fréchet's distance adds the cross term",
        "evals/frechet.py",
        "distance - 2 * cross",
        "distance + 2 * cross",
        "tests/evals/test_frechet.py",
    ),
    Mutation(
        "far neighbours weigh more",
        "evals/neighbours.py",
        "jnp.exp((similarity - similarity[:, :1]) / temperature)",
        "jnp.exp((similarity[:, :1] - similarity) / temperature)",
        "tests/evals/test_neighbours.py",
    ),
    Mutation(
        "Holm corrects nothing",
        "study/statistics.py",
        "(max(tests, len(order)) - rank) * p",
        "p",
        "tests/study/test_statistics.py",
    ),
    Mutation(
        "queries and keys change places on import",
        "weights/huggingface_parts.py",
        '"query": "attention.attention.query"',
        '"query": "attention.attention.key"',
        "tests/weights/test_huggingface.py",
    ),
    Mutation(
        "a hang-up is not a stop",
        "signals.py",
        '"SIGINT", "SIGHUP"',
        '"SIGINT"',
        "tests/test_signals.py",
    ),
)


def noticed(mutation: Mutation, everything: bool) -> bool:
    """Whether tests fail in a copy of the checkout that has the fault."""
    with tempfile.TemporaryDirectory() as made:
        copy = pathlib.Path(made) / "checkout"
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
        path = copy / "pit_jax" / mutation.file
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        tests = ["-n", "2"] if everything else mutation.tests.split()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run(command, cwd=copy, capture_output=True).returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("number", nargs="*", type=int, help="which; every one by default")
    parser.add_argument("--all", action="store_true", help="by the whole suite")
    args = parser.parse_args()
    unnoticed = 0
    for number, mutation in enumerate(MUTATIONS):
        if args.number and number not in args.number:
            continue
        began = time.monotonic()
        found = noticed(mutation, args.all)
        unnoticed += not found
        says = "noticed" if found else "NOT NOTICED"
        print(
            f"{number:2} {says:11} {time.monotonic() - began:4.0f} s  {mutation.what}", flush=True
        )
    return bool(unnoticed)


if __name__ == "__main__":
    sys.exit(main())
