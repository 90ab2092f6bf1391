"""The collectives of a compiled program, read from its text.

TPU programs take some reading. A collective that is overlapped with computation stands in
several fused computations, once a piece, under one channel and chain; a reduce-scatter is
an all-reduce in a computation of that name; what crosses slices is a send to the host.
"""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<shape>.*?)"
    rf" (?P<kind>{'|'.join(KINDS)}|send)(?P<start>-start)?\("
)
_BUFFER = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+)")
_WHILE = re.compile(r" while\(.*condition=%?(?P<condition>[\w.-]+), body=%?(?P<body>[\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size, a whole step of one device.

    `bytes` is the larger of what goes in and what comes out on a device, without the
    padding of tiles, times the turns of the loops around it.
    """

    kind: str
    count: int
    bytes: int
    group: int | None  # devices that take part, None if the text does not say
    between: str  # "chips" of a slice, or "slices"
    in_loop: int  # how many of `count` run inside a loop: once a layer
    turns_known: bool  # False: a loop's turns could not be read and were taken as one

    @property
    def traffic(self) -> float:
        """Bytes that leave a device at the least, by the ring algorithms."""
        n = self.group or math.inf
        share = 1 - 1 / n
        if self.between == "slices" or self.kind == "collective-permute":
            return self.bytes
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def parse(text: str) -> list[Collective]:
    """The collectives in `compiled.as_text()`, the largest first."""
    computations = _computations(text)
    turns = _turns(computations)
    seen: dict[tuple, tuple] = {}
    for name, lines in computations.items():
        times, known, looped = turns.get(name, (0, True, False))
        if not times:
            continue
        for number, line in enumerate(lines):
            found = _OPERATION.match(line)
            if not found:
                continue
            kind, between = found["kind"], "chips"
            if kind == "send":
                kind, between = _between_slices(line), "slices"
                if not kind:
                    continue
            elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            size = _bytes(found["shape"], bool(found["start"]) or between == "slices")
            if kind == "reduce-scatter" and found["kind"] == "reduce-scatter":
                size *= _group(line) or 1  # its text shows what comes out, a share of what goes in
            group = None if between == "slices" else _group(line)
            # One collective may stand in many pieces; the one that runs most often counts.
            chain = re.search(r'chain_id="(\d+)"', line)
            channel = re.search(r"channel_id=(\d+)", line)
            key = (kind, channel[1], chain[1]) if chain and channel else (name, number)
            if key not in seen or seen[key][4] < times:
                seen[key] = (kind, between, group, size, times, known, looped)
    return _summed(seen.values())


def _summed(found) -> list[Collective]:
    groups: dict[tuple, list] = {}
    for kind, between, group, *rest in found:
        groups.setdefault((kind, between, group), []).append(rest)
    collectives = [
        Collective(
            kind=kind,
            count=sum(times for _, times, _, _ in rows),
            bytes=sum(size * times for size, times, _, _ in rows),
            group=group,
            between=between,
            in_loop=sum(times for _, times, _, looped in rows if looped),
            turns_known=all(known for _, _, known, _ in rows),
        )
        for (kind, between, group), rows in groups.items()
    ]
    return sorted(collectives, key=lambda c: (-c.bytes, c.kind, c.between, c.group or 0))


def _computations(text: str) -> dict[str, list[str]]:
    """Name → lines; the entry's name is ""."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            lines = []
            computations["" if line.startswith("ENTRY") else found["name"]] = lines
        elif line == "}":  # a kernel's metadata has lines of its own that start with one
            lines = []
        else:
            lines.append(line)
    return computations


def _turns(computations: dict[str, list[str]]) -> dict[str, tuple[int, bool, bool]]:
    """Computation → how often a step runs it, whether that is known, whether in a loop."""
    turns: dict[str, tuple[int, bool, bool]] = {}

    def visit(name: str, times: int, known: bool, looped: bool) -> None:
        before, known_before, looped_before = turns.get(name, (0, True, False))
        turns[name] = (before + times, known and known_before, looped or looped_before)
        for line in computations.get(name, ()):
            if loop := _WHILE.search(line):
                count = _trip_count(line, computations.get(loop["condition"], ()))
                visit(loop["body"], times * (count or 1), known and count is not None, True)
                continue
            for called in _CALLED.findall(line):
                visit(called, times, known, looped)
            for many, one in _BRANCHES.findall(line):
                for branch in (many or one).split(","):
                    visit(branch.strip().lstrip("%"), times, known, looped)

    visit("", 1, True, False)
    return turns


def _trip_count(line: str, condition: list[str] | tuple) -> int | None:
    """Turns of a loop, said outright or by a counter from 0 that is held against a constant."""
    if said := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(said[1])
    body = "\n".join(condition)
    constants = re.findall(r"= [su]\d+\[\]\S* constant\((\d+)\)", body)
    counts = re.search(r" compare\(.*direction=LT", body)
    return int(constants[0]) if counts and len(constants) == 1 else None


def _between_slices(line: str) -> str:
    """The kind of a collective that the hosts carry from slice to slice, "" for other sends."""
    said = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)
    return said[1].lower().replace("_", "-") if said else ""


def _bytes(shape: str, paired: bool) -> int:
    """Bytes of all buffers in a shape; where an operation in flight names its inputs too, of
    the larger half of them."""
    sizes = []
    for buffer in _BUFFER.finditer(shape):
        count = math.prod(int(d) for d in buffer["dims"].split(",") if d)
        if paired and not buffer["dims"]:  # a token or context beside the data
            continue
        sizes.append(-(-count * _bits(buffer["dtype"]) // 8))
    if paired and len(sizes) > 1 and len(sizes) % 2 == 0:
        half = len(sizes) // 2
        return max(sum(sizes[:half]), sum(sizes[half:]))
    return sum(sizes)


def _bits(dtype: str) -> int:
    """Of f32, bf16, f8e4m3fn, s4, ..."""
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


def _group(line: str) -> int | None:
    """Devices in a group: {{0,1},{2,3}}, [4,2]<=[8], or mesh['x'=4,'y'=2] {'y'}."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        # A part of an axis is written 'axis':(before)size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return None
