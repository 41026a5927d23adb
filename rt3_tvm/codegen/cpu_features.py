"""Which features of a CPU the kernels of a bundle may use, and where a CPU says that it has them.

The bundle asks for them when it is opened (``runtime/c/cpu.c``): a machine without one would die of an illegal instruction.
Listed is what LLVM can use in code like ours, arithmetic on vectors and scalars; atomics, cryptography and what only an intrinsic
of C brings in are not, and are not checked.
"""

from collections.abc import Mapping
from typing import Any

import tvm

Bits = tuple[tuple[str, int], ...]
"""Words of ``rt3_cpu_word``, and the bit of each that must be set."""

X86: Mapping[str, Bits] = {
    "sse3": (("CPUID_1_ECX", 0),),
    "ssse3": (("CPUID_1_ECX", 9),),
    "fma": (("CPUID_1_ECX", 12),),
    "sse4.1": (("CPUID_1_ECX", 19),),
    "sse4.2": (("CPUID_1_ECX", 20),),
    "movbe": (("CPUID_1_ECX", 22),),
    "popcnt": (("CPUID_1_ECX", 23),),
    # A system that does not save the registers makes the instructions illegal, whatever the CPU has.
    "avx": (("CPUID_1_ECX", 28), ("XCR0", 1), ("XCR0", 2)),
    "f16c": (("CPUID_1_ECX", 29),),
    "bmi": (("CPUID_7_EBX", 3),),
    "avx2": (("CPUID_7_EBX", 5),),
    "bmi2": (("CPUID_7_EBX", 8),),
    "avx512f": (("CPUID_7_EBX", 16), ("XCR0", 5), ("XCR0", 6), ("XCR0", 7)),
    "avx512dq": (("CPUID_7_EBX", 17),),
    "avx512ifma": (("CPUID_7_EBX", 21),),
    "avx512cd": (("CPUID_7_EBX", 28),),
    "avx512bw": (("CPUID_7_EBX", 30),),
    "avx512vl": (("CPUID_7_EBX", 31),),
    "avx512vbmi": (("CPUID_7_ECX", 1),),
    "avx512vbmi2": (("CPUID_7_ECX", 6),),
    "gfni": (("CPUID_7_ECX", 8),),
    "avx512vnni": (("CPUID_7_ECX", 11),),
    "avx512bitalg": (("CPUID_7_ECX", 12),),
    "avx512vpopcntdq": (("CPUID_7_ECX", 14),),
    "avx512fp16": (("CPUID_7_EDX", 23),),
    "avxvnni": (("CPUID_7_1_EAX", 4),),
    "avx512bf16": (("CPUID_7_1_EAX", 5),),
    "avxifma": (("CPUID_7_1_EAX", 23),),
    "avxvnniint8": (("CPUID_7_1_EDX", 4),),
    "avxneconvert": (("CPUID_7_1_EDX", 5),),
    "avxvnniint16": (("CPUID_7_1_EDX", 10),),
    "egpr": (("CPUID_7_1_EDX", 21),),
    "lzcnt": (("CPUID_EXTENDED_ECX", 5),),
    "xop": (("CPUID_EXTENDED_ECX", 11),),
    "fma4": (("CPUID_EXTENDED_ECX", 16),),
    "tbm": (("CPUID_EXTENDED_ECX", 21),),
}
AARCH64: Mapping[str, Bits] = {
    "fp-armv8": (("HWCAP", 0),),
    "neon": (("HWCAP", 1),),
    "fullfp16": (("HWCAP", 9), ("HWCAP", 10)),
    "rdm": (("HWCAP", 12),),
    "complxnum": (("HWCAP", 14),),
    "dotprod": (("HWCAP", 20),),
    "sve": (("HWCAP", 22),),
    "fp16fml": (("HWCAP", 23),),
    "sve2": (("HWCAP2", 1),),
    "i8mm": (("HWCAP2", 13),),
    "bf16": (("HWCAP2", 14),),
    "cssc": (("HWCAP2", 34),),
    "mops": (("HWCAP2", 43),),
}
ARM: Mapping[str, Bits] = {
    "vfp2": (("HWCAP", 6),),
    "neon": (("HWCAP", 12),),
    "vfp3": (("HWCAP", 13),),
    "vfp4": (("HWCAP", 16),),
    "hwdiv-arm": (("HWCAP", 17),),
    "hwdiv": (("HWCAP", 18),),
    "d32": (("HWCAP", 19),),
    "fullfp16": (("HWCAP", 22), ("HWCAP", 23)),
    "dotprod": (("HWCAP", 24),),
}
FEATURES: Mapping[str, Mapping[str, Bits]] = {"x86_64": X86, "aarch64": AARCH64, "armv7a": ARM}
"""By architecture and LLVM's name. Sources: Intel SDM, CPUID; Linux's asm/hwcap.h of arm64 and arm."""


def required_features(target: Mapping[str, Any]) -> dict[str, Bits]:
    """Return the features that LLVM may use for a target and that a CPU can be asked for."""
    known = FEATURES.get(str(target.get("mtriple", "")).split("-", 1)[0], {})
    used = {str(name) for name in tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(dict(target)))}
    return {name: bits for name, bits in known.items() if name in used}
