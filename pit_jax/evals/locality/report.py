"""What was measured of locality: as metrics, and as a table for people."""

from typing import Any

import numpy as np

_CHANGES = {"swapped": "pixels swapped", "shifted": "image shifted", "covered": "squares covered"}
_UNITS = {"swapped": "%", "shifted": "px", "covered": "%"}
_NAMES = {
    "attention_distance": "attention distance",
    "positions": "positions",
    "receptive_field": "receptive field",
    "robustness": "accuracy on changed images",
}

_UNREAD = "  after the last block, where the loss reads [CLS] alone, not this token"


def metrics(record: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a record that are worth a column, by name."""
    found = {}
    if distances := record.get("attention_distance"):
        layers = np.mean(distances["heads"], axis=1)
        found["attention_distance"] = float(layers.mean())
        for number, value in enumerate(layers, 1):
            found[f"attention_distance_{number}"] = float(value)
    if table := record.get("positions"):
        names = {"r2": "r2", "near": "similarity_near", "far": "similarity_far"}
        found |= {f"position_{name}": table[name] for name in names.values()}
    if field := record.get("receptive_field"):
        found |= {f"receptive_{name}": field[name] for name in ("radius", "distance", "own")}
    if robust := record.get("robustness"):
        found |= {f"accuracy_{name}": value for name, value in robust["accuracy"].items()}
    return found


def text(record: dict[str, Any]) -> str:
    """The record in lines of at most 80 columns."""
    lines = [f"locality of {record['model']}, step {record['checkpoint_step']}"]
    if distances := record.get("attention_distance"):
        lines += _attention(distances)
    if table := record.get("positions"):
        near, far = table["similarity_near"], table["similarity_far"]
        lines += [
            "",
            f"positions: {table['count']}, {table['kind']}",
            f"  a linear map recovers row and column    R² {table['r2']:.2f}, held-out positions",
            f"  similarity of neighbours {near:+.2f}, of all other pairs {far:+.2f}",
        ]
    if field := record.get("receptive_field"):
        row, column = field["token"]
        even = field["uniform"]
        lines += [
            "",
            f"receptive field of the token in row {row}, column {column}, pixels,"
            f" {field['images']} images",
            *([] if field["read_by_loss"] else [_UNREAD]),
            f"{'':26}{'measured':>10}{'uniform':>10}",
            f"  {'half the energy within':<24}{field['radius']:>10.2f}{even['radius']:>10.2f}",
            f"  {'mean distance':<24}{field['distance']:>10.2f}{even['distance']:>10.2f}",
            f"  {'on its own pixels':<24}{_share(field['own']):>10}{_share(even['own']):>10}",
        ]
    if robust := record.get("robustness"):
        lines += _robustness(robust)
    for name, reason in record["not_measured"].items():
        lines += ["", f"{_NAMES[name]}: not measured,", f"  {reason}"]
    return "\n".join(lines)


def _attention(distances: dict[str, Any]) -> list[str]:
    heads = np.array(distances["heads"])  # (layers, heads)
    columns = ("mean", "nearest", "farthest", "uniform")
    rows = zip(heads.mean(1), heads.min(1), heads.max(1), distances["uniform"], strict=True)
    return [
        "",
        f"attention distance, pixels, {heads.shape[1]} heads, {distances['images']} images",
        f"{'':26}" + "".join(f"{name:>10}" for name in columns),
        *(
            f"  {f'layer {number}':<24}" + "".join(f"{value:>10.2f}" for value in row)
            for number, row in enumerate(rows, 1)
        ),
    ]


def _robustness(robust: dict[str, Any]) -> list[str]:
    accuracy, chance = robust["accuracy"], robust["chance"]
    lines = [
        "",
        f"accuracy, {robust['images']} images (chance {_share(chance)})",
        f"  {'unchanged':<24}{_share(accuracy['unchanged']):>10}",
    ]
    for kind, name in _CHANGES.items():
        doses = [(int(n.split("_")[1]), a) for n, a in accuracy.items() if n.startswith(kind)]
        line = f"  {name:<18}"
        for dose, value in doses:
            line += f"{f'{dose} {_UNITS[kind]}':>8}{_share(value):>7}"
        lines.append(line)
    return lines


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
