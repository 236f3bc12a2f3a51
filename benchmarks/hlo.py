"""Estimates from the text of a compiled program how many bytes it moves and sends between devices.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as the loop runs, by the trip count in
the text, or by the loop's condition, which compares a counter with a constant.

Bytes are those of main memory. Each operation outside a fusion reads its operands and writes its results once. Of a
sliced operand the slices count, of an operand updated in place the update. Arrays in on-chip memory (a layout that ends
in `S(1)`), the padding of tiles, and repeated reads of a kernel do not count.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"([a-z]+)(\d*)[a-z0-9]*\[([\d,<=]*)\](\{[^}]*\})?")
CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
GROUPS = (
    (re.compile(r"replica_groups=\{\{([\d,]+)\}"), lambda match: match[1].count(",") + 1),
    (re.compile(r"replica_groups=\[\d+,(\d+)\]"), lambda match: int(match[1])),
    (
        re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}"),
        lambda match: math.prod(
            int(dict(re.findall(r"'(\w+)'=(\d+)", match[1]))[a]) for a in re.findall(r"\w+", match[2])
        ),
    ),
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
)
SLICES = ("dynamic-slice", "slice", "gather")


class Instruction(NamedTuple):
    """One line of the text: name, shape, operation, operands and attributes."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    arguments: str  # as in the text, such as the value of a constant
    attributes: str
    root: bool


class Size(NamedTuple):
    bytes: int
    main: bool  # whether it is in main memory


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The traffic of one device in one run of the program."""

    bytes: float = 0.0  # read from and written to main memory
    collectives: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # number by kind
    payload: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # result bytes by kind
    sent: float = 0.0  # bytes sent by a device; an all-reduce in a ring sends 2 (n - 1) / n of its own
    unknown_loops: int = 0  # loops counted once, because the text has no trip count

    def __add__(self, other: "Traffic") -> "Traffic":
        both = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return Traffic(*(a + b for a, b in both))

    def times(self, rounds: int) -> "Traffic":
        """The traffic of `rounds` runs; unknown loops are places in the program, so their number stays."""
        how_many, payload = (
            collections.Counter({kind: rounds * n for kind, n in counter.items()})
            for counter in (self.collectives, self.payload)
        )
        return Traffic(rounds * self.bytes, how_many, payload, rounds * self.sent, self.unknown_loops)


def traffic(text: str) -> Traffic:
    """The traffic of one device in one run of a compiled program, from its text (`compiled.as_text()`)."""
    program = Program(text)
    return program.cost(program.entry)


class Program:
    """The computations of a program, each as its instructions by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        lines: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := HEADER.match(line):
                lines = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
            elif match := INSTRUCTION.match(line):
                arguments, attributes = _closed(match[5])
                operands = re.findall(r"%([\w.\-]+)", arguments)
                lines[match[2]] = Instruction(
                    match[2], match[3], match[4], operands, arguments, attributes, bool(match[1])
                )
        self.cost = functools.cache(self._cost)

    def _cost(self, name: str, fused: bool = False) -> Traffic:
        """The traffic of one run of a computation. Inside a fusion no bytes move, but devices may send.

        A collective that runs during several fusions is written in each of them; the first one counts.
        """
        total, lines = Traffic(), self.computations[name]
        goes_on = "async_collective_fusion" in name or any(
            "AsyncCollectiveDone" in line.attributes for line in lines.values()
        )
        for line in lines.values():
            called = self.called(line)
            if line.opcode == "while":
                rounds = self.rounds(name, line)
                total += self.cost(called[0]).times(rounds or 1) + Traffic(unknown_loops=rounds is None)
            elif line.opcode == "conditional":
                total += max((self.cost(branch) for branch in called), key=lambda cost: cost.bytes)
            elif line.opcode in ("call", "async-start"):
                total += sum((self.cost(each) for each in called), Traffic())
            elif (kind := line.opcode.removesuffix("-start")) in COLLECTIVES:
                total += Traffic() if fused and goes_on else self.sending(name, line, kind)
                total += Traffic() if fused else Traffic(self.moved(name, line))
            elif line.opcode == "fusion":
                total += self.cost(called[0], fused=True)
                total += Traffic() if fused else Traffic(self.moved(name, line))
            elif not fused:
                total += Traffic(self.moved(name, line))
        return total

    def called(self, line: Instruction) -> list[str]:
        """The computations that a line runs, without the condition of a loop."""
        return [name for found in CALLED.findall(line.attributes) for name in re.findall(r"%([\w.\-]+)", found)]

    def sending(self, computation: str, line: Instruction, kind: str) -> Traffic:
        lines, n = self.computations[computation], group_size(line.attributes)
        payload = sum(size.bytes for name in line.operands for size in sizes(lines[name].shape))
        if "all-reduce-scatter" in computation:  # a fusion of an all-reduce and a slice
            kind = "reduce-scatter"
        if kind == "all-gather":
            payload *= n
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
        counts = collections.Counter({kind: 1}), collections.Counter({kind: payload})
        return Traffic(0.0, *counts, payload * share)

    def moved(self, computation: str, line: Instruction) -> float:
        """Bytes of main memory read and written by an operation outside a fusion."""
        opcode = line.opcode.removesuffix("-start")
        nothing = line.opcode in FREE or line.opcode.endswith(("-done", "-update")) or line.opcode == "custom-call"
        if nothing and not (line.opcode == "custom-call" and line.operands):
            return 0
        lines, results = self.computations[computation], sizes(line.shape)
        operands = [sizes(lines[name].shape) for name in line.operands]
        if line.opcode.endswith("-start"):  # results: (result, operand, ...) of a copy, else (operands, results, ...)
            count = sum(map(len, operands))
            results = results[:1] if opcode == "copy" else results[count : 2 * count] or results
        if opcode in SLICES:
            return results[0].bytes * (operands[0][0].main + results[0].main)
        if opcode == "dynamic-update-slice":
            return operands[1][0].bytes * (operands[1][0].main + results[0].main)
        if opcode == "fusion":
            inside = self.called(line)[0]
            read = (
                self.read(inside, i) if size[0].main and len(size) == 1 else _in_main(size)
                for i, size in enumerate(operands)
            )
            written = zip(results, self.written(inside), strict=True)
            return sum(read) + sum(number for size, number in written if size.main)
        return _in_main(results) + sum(map(_in_main, operands))

    def read(self, computation: str, index: int) -> int:
        """Bytes that a fused computation reads of its parameter `index`."""
        lines = self.computations[computation]
        parameters = (line for line in lines.values() if line.opcode == "parameter" and line.arguments == str(index))
        parameter = next(parameters)
        return min(sizes(parameter.shape)[0].bytes, self._read(computation, parameter.name))

    def _read(self, computation: str, name: str) -> int:
        lines, total = self.computations[computation], 0
        for user in lines.values():
            for place, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode in SLICES and place == 0:
                    total += sizes(user.shape)[0].bytes
                elif user.opcode == "bitcast":
                    total += self._read(computation, user.name)
                elif user.opcode == "fusion":
                    total += self.read(self.called(user)[0], place)
                elif user.opcode != "tuple" and not (user.opcode == "dynamic-update-slice" and place == 0):
                    total += sizes(lines[name].shape)[0].bytes
        return total

    def written(self, computation: str) -> list[int]:
        """Bytes that a fused computation writes of each of its results."""
        lines = self.computations[computation]
        root = next(line for line in lines.values() if line.root)
        return list(self._written(computation, root))

    def _written(self, computation: str, line: Instruction) -> Iterator[int]:
        lines = self.computations[computation]
        if line.opcode == "tuple":
            for name in line.operands:
                yield from self._written(computation, lines[name])
        elif line.opcode == "bitcast":
            yield from self._written(computation, lines[line.operands[0]])
        elif line.opcode == "fusion":
            yield from self.written(self.called(line)[0])
        elif line.opcode == "parameter":
            yield 0
        elif line.opcode == "dynamic-update-slice":
            yield sizes(lines[line.operands[1]].shape)[0].bytes
        else:
            yield from (size.bytes for size in sizes(line.shape))

    def rounds(self, computation: str, loop: Instruction) -> int | None:
        """The trip count of a loop, or None if unknown."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        lines = self.computations[computation]
        initial = lines[loop.operands[0]]
        carried = [self.constant(lines, name) for name in initial.operands] if initial.opcode == "tuple" else []
        found = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        condition = self.computations[found[1]] if found else {}
        test = next((line for line in condition.values() if line.root), None)
        if test is None or test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = re.search(r"index=(\d+)", condition[test.operands[0]].attributes)
        limit = self.constant(condition, test.operands[1], carried)
        if counter is None or limit is None:
            return None
        place = int(counter[1])
        start = carried[place] if carried else None
        unknown = [None if i == place else value for i, value in enumerate(carried)]  # the counter changes
        body = self.computations[self.called(loop)[0]]
        after = next(line for line in body.values() if line.root)
        added = body[after.operands[place]]
        steps = [self.constant(body, name, unknown) for name in added.operands] if added.opcode == "add" else []
        step = next((value for value in steps if value), 1)
        return -(-(limit - (start or 0)) // step)

    def constant(self, lines: dict[str, Instruction], name: str, carried: Any = ()) -> int | None:
        """The integer value of a line, through copies and a loop's tuple; None if it is no constant."""
        line = lines[name]
        if line.opcode == "constant" and line.arguments.lstrip("-").isdecimal():
            return int(line.arguments)
        if line.opcode in ("copy", "bitcast", "convert"):
            return self.constant(lines, line.operands[0], carried)
        index = re.search(r"index=(\d+)", line.attributes)
        if line.opcode == "get-tuple-element" and carried and index and lines[line.operands[0]].opcode == "parameter":
            return carried[int(index[1])]
        return None


def sizes(shape: str) -> list[Size]:
    """The sizes of the arrays in a shape, tuples flattened."""
    found = []
    for kind, bits, dims, layout in ARRAY.findall(shape):
        width = int(bits or {"pred": 8}.get(kind, 0))
        count = math.prod(int(dim.lstrip("<=")) for dim in dims.split(",") if dim)
        found.append(Size(-(-count * width // 8), "S(" not in layout))
    return found


def group_size(attributes: str) -> int:
    """The number of devices in each group of a collective."""
    for pattern, size in GROUPS:
        if match := pattern.search(attributes):
            return size(match)
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    return pairs[1].count("{") if pairs else 1


def _in_main(found: list[Size]) -> int:
    return sum(size.bytes for size in found if size.main)


def _closed(text: str) -> tuple[str, str]:
    """The text before the matching closing parenthesis, and the text after it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""
