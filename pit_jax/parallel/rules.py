"""Rules on parameter paths: one mechanism for sharding, weight decay, layers and freezing.

A parameter's path is its keys joined by slashes, as in `trunk/blocks/query/kernel`. A
rule is a regular expression searched in that path; the first rule that matches decides.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Path → axes of the trailing dimensions; the layer dimension of scanned blocks, in front
# of them, is never split. Products over `model` follow Megatron: the first of a pair is
# split by its outputs, the second by its inputs. Everything large is split over fsdp.
PARTITION_RULES = (
    (r"(conv\w*|shortcut|downsample|upsample)/kernel$", (None, "fsdp")),
    (r"(query|key|value|up)/kernel$", ("fsdp", "model")),
    (r"(out|down)/kernel$", ("model", "fsdp")),
    (r"(query|key|value|up)/bias$", (("model", "fsdp"),)),
    (r"(modulation|time/first)/kernel$", ("fsdp", "model")),
    (r"time/second/kernel$", ("model", "fsdp")),
    (r"(modulation|time/first)/bias$", (("model", "fsdp"),)),
    (r"label/table$", (None, "fsdp")),
    (r"head/kernel$", ("fsdp", None)),
    (r"head/bias$", (None,)),
    (r"embed/(patch/kernel|cls|position|colour(/table)?|start)$", (None, "fsdp")),
    (r"(^|/)latents$", (None, "fsdp")),
    (r"decoder/(embed/kernel|mask|position)$", (None, "fsdp")),
    (r"(bias|scale)$", ("fsdp",)),
)

# No weight decay on norms, biases, layer scale, [CLS], positions (MAE's recipe) and the mask.
NO_DECAY_RULES = (r"bias$", r"scale$", r"norm\d?/", r"embed/(cls|position)$")
NO_DECAY_RULES += (r"decoder/(mask|position)$",)
NO_DECAY_RULES += (r"embed/(colour(/table)?|start)$", r"(^|/)latents$")
NO_DECAY_RULES += (r"label/table$",)  # a class's own row: decay would shrink rare ones most


def path_of(keys: Sequence[Any]) -> str:
    """A jax key path as `a/b/c`; optimiser state keeps the parameter's path at its end."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def matches(path: str, rules: Sequence[str]) -> bool:
    """Whether any of the regular expressions is found in the path."""
    return any(re.search(rule, path) for rule in rules)


def map_with_path(f, tree: Any) -> Any:
    """tree.map with `f(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: f(path_of(keys), leaf), tree)


def partition(path: str, shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """How the array at `path` is split over a mesh with axes of these sizes.

    An axis that does not divide its dimension is dropped: the array is then repeated
    over it. Paths that no rule knows (counters, scalars) are repeated everywhere.
    """
    for rule, trailing in PARTITION_RULES:
        if re.search(rule, path) and len(trailing) <= len(shape):
            break
    else:
        return PartitionSpec()
    spec: list = [None] * (len(shape) - len(trailing))
    for size, axes in zip(shape[len(spec) :], trailing, strict=True):
        kept: list[str] = []
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            if size % math.prod(sizes[a] for a in (*kept, axis)) == 0:
                kept.append(axis)
        spec.append(tuple(kept) if kept else None)
    return PartitionSpec(*spec)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes."""
    return map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition(path, leaf.shape, mesh.shape)), tree
    )
