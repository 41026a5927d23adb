"""What an ARM instruction does, by what a disassembler prints of it: the kinds that the ladder counts."""

import re
from dataclasses import dataclass
from functools import cached_property

MULTIPLY_ADD = "multiply-adds"
VECTOR = "vector"
VECTOR_LOAD = "vector loads"
SCALAR_LOAD = "scalar loads"
STACK_STORE = "stack stores"
STORE = "stores"
MOVE = "moves"
INTEGER = "integer"
BRANCH = "branches"
OTHER = "other"
KINDS = (
    MULTIPLY_ADD,
    VECTOR,
    VECTOR_LOAD,
    SCALAR_LOAD,
    STACK_STORE,
    STORE,
    MOVE,
    INTEGER,
    BRANCH,
    OTHER,
)
"""Multiply-adds of vectors and floats; their other arithmetic; loads that fill a vector (64 bits or more); loads of one number,
broadcasts included; stores to a fixed place of the stack, which is what a spill is; other stores; moves between registers and of
constants; integers and addresses; branches; prefetches, barriers and what else there is."""

_CONDITION = r"(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?"
_BRANCH = re.compile(rf"(b(\.\w+)?|bl|blr|br|ret|bl?x?{_CONDITION}(\.[nw])?|bxj|cbn?z|tbn?z|tb[bh])")
_MULTIPLY_ADD = re.compile(
    r"(fn?m(add|sub)|[fsu]ml[as]l?[2bt]?|(su|us|[su])dot|(us|[su])mmla|ml[as]|bf(dot|mmla|mlal[bt])"  # 64-bit ARM
    r"|v(n?m|fn?m)(la|ls|a|s)l?|v[su]dot|v(us|[su])mmla)"
)
_MOVE = re.compile(r"(f?mov[iznk]?|mvni?|dup|ins|[su]mov|vmov|vmvn|vdup|vswp|movs|mvns|movw|movt)")
_OTHER = re.compile(r"(prf\w*|pld\w*|pli|nop|hint|bti|d[ms]b|isb|mrs|msr|vmrs|vmsr|svc|udf|brk|clrex|it[te]*|\..*)")
_STORE = re.compile(r"(st\w+|vst\w*|push|vpush)")
_LOAD = re.compile(r"(ld\w+|vld\w*|pop|vpop)")
_MEMORY = re.compile(r"\[(?P<base>\w+)(?P<within>[^\]]*)\](?P<after>.*)")
_ONE_LANE = re.compile(r"\]\s*\}|\}\s*\[|^\w*1r\b")
_FLOAT = re.compile(r"\bv\d+\.|(?<![\w\[])[bhsdq]\d{1,2}\b")


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly."""

    address: int
    text: str
    wide: bool
    """Whether it is of 64-bit ARM."""

    @cached_property
    def name(self) -> str:
        """The mnemonic as it is printed."""
        return self.text.split(maxsplit=1)[0]

    @cached_property
    def operands(self) -> str:
        """All that stands behind the mnemonic."""
        return self.text.partition(self.name)[2].strip()

    @cached_property
    def stem(self) -> str:
        """The mnemonic without types, widths of the encoding and conditions."""
        if self.wide:
            return self.name
        stem = self.name.split(".", 1)[0]
        bare = re.sub(r"(eq|ne|cs|hs|cc|lo|mi|pl|hi|ge|lt|gt|le)$", "", stem)
        return bare if len(bare) > 1 and bare not in ("vm", "ms", "te") else stem

    @property
    def is_branch(self) -> bool:
        """Whether it may leave the sequence, calls included."""
        return _BRANCH.fullmatch(self.name) is not None

    @property
    def is_store(self) -> bool:
        """Whether it writes memory."""
        return _STORE.fullmatch(self.stem) is not None

    @property
    def is_load(self) -> bool:
        """Whether it reads memory."""
        return _LOAD.fullmatch(self.stem) is not None

    @cached_property
    def kind(self) -> str:
        """Its kind; whether a store goes to the stack only its function tells: see ``arm_code``."""
        if self.is_branch:
            return BRANCH
        if _OTHER.fullmatch(self.name) or _OTHER.fullmatch(self.stem):
            return OTHER
        if self.is_store:
            return STORE
        if self.is_load:
            return VECTOR_LOAD if self._fills_a_vector() else SCALAR_LOAD
        return self._arithmetic()

    def _arithmetic(self) -> str:
        floats = _FLOAT.search(self.operands.partition("<")[0]) is not None
        if floats and _MULTIPLY_ADD.fullmatch(self.stem):
            return MULTIPLY_ADD
        if _MOVE.fullmatch(self.stem) or self._copies():
            return MOVE
        return VECTOR if floats else INTEGER

    def _fills_a_vector(self) -> bool:
        registers = self.operands.partition("[")[0] if "{" not in self.operands else self.operands.partition("}")[0]
        if _ONE_LANE.search(self.operands) or self.stem.endswith("1r"):
            return False
        return re.search(r"\bv\d+\.|(?<![\w\[])[dq]\d+\b", registers) is not None

    def _copies(self) -> bool:
        """Whether it is 32-bit ARM's ``vorr d, a, a``."""
        registers = [part.strip() for part in self.operands.split(",")]
        return self.stem == "vorr" and len(registers) == 3 and registers[1] == registers[2]

    @property
    def memory(self) -> tuple[str, bool] | None:
        """The register that an address begins with, and whether the place is fixed: no index, and the register stays as it is.

        Pushing is a fixed place too: the stack's own register moves.
        """
        if self.stem in ("push", "vpush", "pop", "vpop"):
            return "sp", True
        if found := _MEMORY.search(self.operands.rpartition("}")[2] if "{" in self.operands else self.operands):
            within, after = found["within"].strip(" ,"), found["after"].strip(" ,")
            fixed = not within or (within[0] in ":#" and "," not in within)
            return found["base"], fixed and (not after or found["base"] == "sp")
        if self.stem.startswith(("stm", "ldm", "vstm", "vldm")):
            base = self.operands.split(",", 1)[0].strip()
            return base.rstrip("!"), not base.endswith("!") or base == "sp!"
        return None
