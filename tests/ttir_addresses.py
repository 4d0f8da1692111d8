"""Finds 32-bit arithmetic that could overflow on its way into an address, in a kernel's TTIR.

From the offset of each `tt.addptr` its definition is followed backwards, through loops and branches, up
to what memory holds. On the way these overflow in a table large enough, and are found:

- a product (or shift) of 32-bit numbers that are not known to be small;
- a sum of two such numbers;
- a 32-bit number carried around a loop.

Small are constants, ranges of lanes, and what is computed of these alone. The counter of a loop is
bounded by a size, so that a small number can be added to it. A lane times an argument is a row within a
tile, of which launchers refuse those that do not fit 32 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

NAME = r"%[\w$.-]+(?:#\d+)?"
SAME = {"tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans"}
SAME |= {"arith.extsi", "arith.extui", "arith.trunci", "ttg.convert_layout"}
ARITHMETIC = {"arith.addi", "arith.subi", "arith.muli", "arith.shli"}
MEMORY = {"tt.load", "tt.atomic_rmw", "tt.atomic_cas"}


@dataclass
class Value:
    """An SSA value: the operation that makes it, what that reads, and whether it is 32-bit."""

    operation: str
    operands: list[str]
    narrow: bool
    line: str


@dataclass
class Region:
    """An operation with blocks inside: the values it gives, and those its blocks hand on."""

    operation: str
    results: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)


class _Parser:
    """One pass over the text. Names are made unique: sibling blocks use the same ones."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.scopes: list[dict[str, str]] = [{}]
        self.regions: list[Region] = []

    def define(self, name: str, operation: str, operands: list[str], type_: str, line: str) -> str:
        unique = f"{name}@{len(self.values)}"
        self.values[unique] = Value(operation, operands, _narrow(type_), line)
        self.scopes[-1][name] = unique
        return unique

    def resolve(self, names: list[str]) -> list[str]:
        scopes = self.scopes[::-1]
        # what is not defined is an argument of the kernel, and keeps its name
        return [next((scope[name] for scope in scopes if name in scope), name) for name in names]

    def open(self, region: Region) -> None:
        self.regions.append(region)
        self.scopes.append({})

    def close(self) -> Region:
        self.scopes.pop()
        return self.regions.pop()

    def read(self, line: str) -> None:
        if line.startswith("}"):
            region = self.close()
            if line.endswith("{"):  # } else {, } do {: the next block of the same operation
                self.open(region)
            return
        if line.startswith("^"):
            self.block(line)
            return
        found = re.match(rf"(?:({NAME}(?::\d+)?) = )?\"?([\w.]+)\"?", line)
        if found is None:
            return
        head, operation, body = found[1] or "", found[2], line[found.end() :]
        if operation == "scf.for":
            self.loop(head, body, line)
        elif operation == "scf.while":
            types = _types(body.rpartition("->")[2])
            results = self.results(head, "result", types, line)
            self.open(Region(operation, results))
            self.carry(body, types, line)
        elif operation == "scf.if":
            results = self.results(head, "result", _types(body.partition("->")[2]), line)
            self.open(Region(operation, results))
        elif operation in ("scf.yield", "scf.condition"):
            self.hand_on(operation, body)
        else:
            operands = self.resolve(re.findall(NAME, body.rpartition(" : ")[0] or body))
            types = _types(body.rpartition(" : ")[2].rpartition("->")[2])
            for unique in self.results(head, operation, types, line):
                self.values[unique].operands += operands
            if line.endswith("{"):
                self.open(Region(operation))

    def results(self, head: str, operation: str, types: list[str], line: str) -> list[str]:
        """%a -> [%a]; %a:2 -> [%a#0, %a#1]."""
        if not head:
            return []
        name, _, count = head.partition(":")
        names = [f"{name}#{n}" for n in range(int(count))] if count else [name]
        types = types + [""] * (len(names) - len(types))
        pairs = zip(names, types[-len(names) :], strict=True)
        return [self.define(name, operation, [], type_, line) for name, type_ in pairs]

    def carry(self, body: str, types: list[str], line: str) -> None:
        region = self.regions[-1]
        pairs = re.findall(rf"({NAME}) = ({NAME})", body)
        for (name, initial), type_ in zip(pairs, types, strict=True):
            unique = self.define(name, "carried", self.resolve([initial]), type_, line)
            region.carried.append(unique)

    def loop(self, head: str, body: str, line: str) -> None:
        counter, *_ = re.findall(NAME, body)
        rest = body.partition("iter_args")[2]
        types = _types(rest.partition("->")[2].rpartition(" : ")[0] or rest.partition("->")[2])
        results = self.results(head, "result", types, line)
        self.open(Region("scf.for", results))
        self.define(counter, "counter", [], "i32", line)
        self.carry(rest, types, line)
        for result, carried in zip(results, self.regions[-1].carried, strict=True):
            self.values[result].operands.append(carried)

    def block(self, line: str) -> None:
        """The arguments of the second block of a while, or of a function that reduces."""
        region = self.regions[-1]
        arguments = re.findall(rf"({NAME}): ((?:[^,<()]|<[^>]*>+)+)", line)
        for n, (name, type_) in enumerate(arguments):
            operands = [region.results[n]] if region.operation == "scf.while" else []
            self.define(name, "argument", operands, type_, line)

    def hand_on(self, operation: str, body: str) -> None:
        region, operands = self.regions[-1], self.resolve(re.findall(NAME, body))
        into = region.results if region.operation == "scf.if" else region.carried
        if operation == "scf.condition":
            operands, into = operands[-len(region.results) :], region.results
        for unique, operand in zip(into, operands, strict=False):
            self.values[unique].operands.append(operand)


def _types(text: str) -> list[str]:
    return re.findall(r"(?:tensor|!tt\.\w+)<[^()]*?>+|\b(?:[fi]\d+|index|bf16)\b", text)


def _narrow(type_: str) -> bool:
    return bool(re.search(r"(?:^|[x<])i(?:8|16|32)>?$", type_)) and "ptr" not in type_


def parse(ttir: str) -> dict[str, Value]:
    """Every value of a kernel by a unique name."""
    parser = _Parser()
    for line in ttir.splitlines():
        line = re.sub(r'\s*loc\((?:[^()"]|"[^"]*"|\([^()]*\))*\)', "", line).strip()
        if line and not line.startswith("#"):
            parser.read(line)
    assert not parser.regions, "blocks were not understood"
    return parser.values


def _small(name: str, values: dict[str, Value]) -> bool:
    value = values.get(name)
    if value is None:
        return False  # an argument of the kernel
    if value.operation in ("arith.constant", "tt.make_range"):
        return True
    if value.operation in SAME | ARITHMETIC | {"arith.divsi", "arith.remsi", "arith.andi"}:
        return all(_small(operand, values) for operand in value.operands)
    return False


def _row_of_tile(value: Value, values: dict[str, Value]) -> bool:
    small = [_small(operand, values) for operand in value.operands]
    return value.operation == "arith.muli" and any(
        small[n] and _argument(value.operands[1 - n], values) for n in range(2)
    )


def _argument(name: str, values: dict[str, Value]) -> bool:
    while name in values and values[name].operation in SAME:
        name = values[name].operands[0]
    return name not in values


def _counter(name: str, values: dict[str, Value]) -> bool:
    value = values.get(name)
    while value is not None and value.operation in SAME:
        value = values.get(value.operands[0])
    return value is not None and value.operation == "counter"


def narrow_address_arithmetic(ttir: str) -> list[str]:
    """The lines of 32-bit arithmetic that feed an address; none in a kernel that is safe."""
    values = parse(ttir)
    pending = [value.operands[1] for value in values.values() if value.operation == "tt.addptr"]
    assert pending or "tt.addptr" not in ttir, "no address was understood"
    seen: set[str] = set()
    found: list[str] = []
    while pending:
        name = pending.pop()
        if name in seen or name not in values:
            continue
        seen.add(name)
        value = values[name]
        if value.operation in MEMORY:
            continue
        if value.narrow and value.operation in ("arith.muli", "arith.shli"):
            if not _small(name, values) and not _row_of_tile(value, values):
                found.append(value.line)
        elif value.narrow and value.operation in ("arith.addi", "arith.subi"):
            if not any(_small(operand, values) for operand in value.operands):
                found.append(value.line)
        elif value.narrow and value.operation == "carried":
            found.append(value.line)
        # which of two values is chosen is no part of an address
        pending += value.operands[value.operation == "arith.select" :]
    return found
