"""The machine code of a bundle: its functions, their innermost loops, and the stores to the stack within them."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rt3_tvm.bench.arm_kinds import STACK_STORE, Instruction
from rt3_tvm.errors import JobError

_FUNCTION = re.compile(r"([0-9a-f]+) <(.*)>:")
_LINE = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
_COMMENT = re.compile(r"\s+(//|@|;).*")
_TARGET = re.compile(r"\b([0-9a-f]+)\s*<")
_WRITES_BACK = re.compile(r"\[(\w+)[^\]]*\](?:!|, )")
_CALLS = re.compile(r"(bl|blr|blx)(\.\w+)?")
_COMPARES = re.compile(r"(f?cmp\w*|f?ccmp\w*|tst|teq|cmn|vcmp\w*)(\..*)?")
_KEPT = {True: range(19, 31), False: range(4, 12)}
"""Numbers of the registers that a call gives back as they were, 64-bit ARM and 32-bit."""


@dataclass(frozen=True)
class Function:
    """The instructions between one symbol and the next, ascending."""

    symbol: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each instruction, stores to the stack told from others."""
        stack = self._stack_stores
        return tuple(STACK_STORE if k in stack else one.kind for k, one in enumerate(self.instructions))

    @cached_property
    def loops(self) -> tuple[range, ...]:
        """The innermost loops: positions from the target of a backward branch to the branch, with no such pair inside."""
        position = {one.address: k for k, one in enumerate(self.instructions)}
        ends: dict[int, int] = {}
        for k, one in enumerate(self.instructions):
            start = position.get(_target(one), k + 1)
            if start <= k and not _CALLS.fullmatch(one.name):
                ends[start] = k
        return tuple(
            range(start, end + 1)
            for start, end in ends.items()
            if not any(start < s and e <= end for s, e in ends.items())
        )

    @property
    def stack_stores_in_loops(self) -> int:
        """How many instructions of the innermost loops store to a fixed place of the stack."""
        return sum(self.kinds[k] == STACK_STORE for loop in self.loops for k in loop)

    def _moved_in(self, loop: range) -> set[str]:
        """Return the registers that a loop moves along: by an address that is written back, or by a sum with themselves."""
        found = set()
        for one in (self.instructions[k] for k in loop):
            base, fixed = one.memory or ("", True)
            parts = [_whole(part) for part in one.operands.split(",")]
            if not fixed and _written_back(one):
                found.add(_whole(base))
            elif one.stem in ("add", "sub", "adds", "subs") and len(parts) in (2, 3) and parts[0] == parts[-2]:
                found.add(parts[0])
        return found - {"sp"}

    @cached_property
    def _stack_stores(self) -> frozenset[int]:
        """Positions of stores whose address is the stack pointer, or a register that was set to an address of the stack.

        Read from top to bottom, without following branches: a register counts until something else is written to it, and not
        where the innermost loop of the store moves it along.
        """
        found, of_stack = set(), {"sp"}
        moved = {k: self._moved_in(loop) for loop in self.loops for k in loop}
        for k, one in enumerate(self.instructions):
            if one.is_store:
                base, fixed = one.memory or ("", False)
                if fixed and _whole(base) in of_stack - moved.get(k, set()):
                    found.add(k)
                continue
            if _points_at_stack(one, of_stack):
                of_stack.add(_whole(one.operands.split(",", 1)[0]))
            else:
                of_stack -= _written(one)
        return frozenset(k for k in found if not any(k in loop and self._moves(k, loop) for loop in self.loops))

    def _moves(self, store: int, loop: range) -> bool:
        """Return whether a store of a loop goes to another address in each iteration: it fills a buffer."""
        writers: dict[str, list[Instruction]] = {}
        for one in (self.instructions[k] for k in loop):
            for name in _moved_base(one) | (set() if one.is_store else _written(one)):
                writers.setdefault(name, []).append(one)
        fixed = {f"{letter}{n}" for letter in "xr" for n in range(31)} | {"sp"}
        fixed -= writers.keys()
        while new := {n for n, by in writers.items() if all(_points_at_stack(o, fixed) for o in by)} - fixed:
            fixed |= new
        base, _ = self.instructions[store].memory or ("", False)
        return _whole(base) in writers.keys() - fixed


def _target(one: Instruction) -> int:
    """Return the address that a branch may go to; -1 where the text has none."""
    found = _TARGET.search(one.operands) if one.is_branch else None
    return int(found[1], 16) if found else -1


def _whole(register: str) -> str:
    """Return the 64-bit name of a register of 64-bit ARM that is named by its lower half."""
    name = register.strip(" !{}")
    return f"x{name[1:]}" if re.fullmatch(r"w\d+", name) else name


def _written_back(one: Instruction) -> bool:
    """Return whether an instruction that reads or writes memory moves the register of its address."""
    behind = one.operands.rpartition("]")[2] if "]" in one.operands else one.operands.partition(",")[0]
    return behind.strip() != "" and (behind.strip()[0] in ",!" or behind.strip()[-1] == "!")


def _points_at_stack(one: Instruction, of_stack: set[str]) -> bool:
    """Return whether an instruction sets a register to an address of the stack; one that moves along it is none."""
    parts = [part.strip() for part in one.operands.split(",")]
    if one.stem == "mov" and len(parts) == 2:
        return _whole(parts[1]) in of_stack
    constant = len(parts) in (2, 3) and parts[-1].startswith("#") and one.stem in ("add", "sub", "addw", "subw")
    return constant and _whole(parts[-2]) in of_stack and (parts[0] == "sp" or _whole(parts[0]) != _whole(parts[-2]))


def _written(one: Instruction) -> set[str]:
    """Return the registers that an instruction writes, as far as they may hold an address; never the stack's own."""
    if one.is_branch:
        if not _CALLS.fullmatch(one.name):
            return set()
        kept = {f"{'x' if one.wide else 'r'}{n}" for n in _KEPT[one.wide]} | {"fp", "x29"}
        return {f"{'x' if one.wide else 'r'}{n}" for n in range(31)} - kept | {"lr", "ip"}
    if _COMPARES.fullmatch(one.name):
        return set()
    if one.is_load:
        loaded = re.findall(r"\w+", one.operands.partition("[")[0] if "[" in one.operands else one.operands)
        return {_whole(name) for name in loaded} - {"sp"}
    return {_whole(one.operands.split(",", 1)[0])} - {"sp"}


def _moved_base(one: Instruction) -> set[str]:
    """Return the register of an address that a load or store moves behind or ahead of itself."""
    found = _WRITES_BACK.search(one.operands)
    return {_whole(found[1])} if found else set()


def disassembler(triple: str) -> str:
    """Return the program of binutils that prints the code of a GNU target.

    Raises
    ------
    JobError
        It is not installed.
    """
    name = f"{triple}-objdump"
    if shutil.which(name) is None:
        raise JobError(f"{name} is not installed, which shows the instructions: install binutils-{triple}")
    return name


def disassemble(bundle: Path, triple: str) -> list[Function]:
    """Return the functions of a bundle for a GNU target, ascending."""
    command = [disassembler(triple), "-d", "--no-show-raw-insn", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise JobError(f"'{bundle}': {' '.join(done.stderr.split())[:200]}")
    return list(_functions(done.stdout.splitlines(), triple.startswith("aarch64")))


def _functions(lines: Sequence[str], wide: bool) -> Iterator[Function]:
    symbol = ""
    found: list[Instruction] = []
    for line in lines:
        if head := _FUNCTION.match(line):
            if found:
                yield Function(symbol, tuple(found))
            symbol, found = head[2], []
        elif (body := _LINE.match(line)) and (text := _COMMENT.sub("", body[2])):
            found.append(Instruction(int(body[1], 16), text.replace("\t", " "), wide))
    if found:
        yield Function(symbol, tuple(found))
