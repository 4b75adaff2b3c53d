"""What a compiled program of jax sends between devices."""

from __future__ import annotations

import re

# Operations whose results come over from other devices, also in two halves, of which the first is named.
_SENT = re.compile(
    r"= (?P<shapes>.*?) (?P<name>all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
_SHAPE = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d+)\[(?P<sizes>[\d,]*)\]")


def collectives(program: str) -> dict[str, int]:
    """Bytes of the results of each kind of operation between devices, on one device.

    Args:
        program: Text of a compiled program, `jax.jit(f).lower(...).compile().as_text()`.
    """
    found: dict[str, int] = {}
    for line in program.splitlines():
        sent = _SENT.search(line)
        if sent is None:
            continue
        for shape in _SHAPE.finditer(sent["shapes"]):
            count = 1
            for size in filter(None, shape["sizes"].split(",")):
                count *= int(size)
            found[sent["name"]] = found.get(sent["name"], 0) + count * int(shape["bits"]) // 8
    return found
