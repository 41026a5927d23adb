"""The ladder: what an instruction is, what stores to the stack, that counts are those of the arithmetic, what the models say."""

import json
import re
import subprocess

import arm_counts
import numpy as np
import pytest

from rt3_tvm import CompileOptions, compile
from rt3_tvm.bench.arm import bench_arm
from rt3_tvm.bench.arm_code import disassemble
from rt3_tvm.bench.arm_cycles import IN_ORDER, Block, cycle_model
from rt3_tvm.bench.arm_kinds import Instruction
from rt3_tvm.bench.arm_qemu import build_plugin
from rt3_tvm.cli.main import main
from rt3_tvm.codegen import emulate
from rt3_tvm.codegen.link import choose_compiler
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime.check import read_metadata
from rt3_tvm.trials import TOLERANCES, Trial
from tests.arm.conftest import MISSING, skips_without_tools
from tests.conftest import need_program, reference

KINDS = {
    "multiply-adds": (
        "fmla v0.4s, v1.4s, v2.s[0]",
        "fmadd s0, s1, s2, s3",
        "udot v0.4s, v1.16b, v2.4b[1]",
        "smlal2 v0.4s, v1.8h, v2.8h",
        "fmlal2 v0.4s, v1.4h, v2.4h",
    ),
    "vector": ("fmul v0.4s, v1.4s, v2.4s", "fdiv s0, s1, s2", "zip1 v0.4s, v1.4s, v2.4s", "cmeq v0.4s, v1.4s, #0"),
    "vector loads": ("ldr q0, [x1, #16]", "ldp d0, d1, [x1]", "ld1 {v0.4s, v1.4s}, [x1], #32", "ldur q1, [x2, #-8]"),
    "scalar loads": ("ldp s3, s22, [x12, #32]", "ld1r {v0.4s}, [x1]", "ld1 {v0.s}[1], [x1]", "ldrh w1, [x2]"),
    "stores": ("str q0, [x1]", "st1 {v0.4s}, [x1], #16", "stlxr w0, w1, [x2]"),
    "moves": ("mov v0.16b, v1.16b", "mov x0, x1", "fmov s0, #1.0", "dup v0.4s, v1.s[0]", "movk x0, #7, lsl #16"),
    "integer": ("add x0, x1, w2, uxtw #2", "madd x0, x1, x2, x3", "adrp x8, d000 <a+0x4>", "bfi w0, w1, #2, #3"),
    "branches": ("b.ne 1b40 <f+0x40>", "bl d00 <g>", "ret", "cbz w0, 1b40 <f>", "tbnz w0, #3, 1b40 <f>"),
    "other": ("prfm pldl1keep, [x0]", "nop", "dmb ish"),
}
KINDS_32 = {
    "multiply-adds": ("vmla.f32 q0, q1, d4[0]", "vfma.f32 q0, q1, q2", "vmlal.s16 q0, d2, d3"),
    "vector": ("vmul.f32 q0, q1, d4[0]", "vadd.f32 q0, q1, q2", "vcgt.f32 q0, q1, q2", "vmul.f32 s0, s1, s2"),
    "vector loads": ("vld1.32 {d0-d1}, [r1]!", "vldr d0, [r1]", "vldmia r1, {d0-d1}", "vpop {d8-d15}"),
    "scalar loads": (
        "vld1.32 {d0[]-d1[]}, [r1 :32]",
        "vld1.32 {d0[1]}, [r1]",
        "vldr s0, [r1]",
        "pop {r4, pc}",
        "ldrdeq r0, r1, [r2]",
    ),
    "stores": ("vst1.32 {d0-d1}, [r1]!", "strge r0, [r1]", "stmia.w r0, {r1, r2}"),
    "moves": ("vmov.f32 q0, #1.0", "vorr q8, q9, q9", "movne r0, #1", "vdup.32 q0, d1[0]", "mvn.w r0, r1"),
    "integer": ("add.w r0, r1, r2, lsl #2", "mla r0, r1, r2, r3", "bic.w r0, r1, #7", "teqeq r0, r1"),
    "branches": ("bls.n 1b40 <f>", "blx 1b40 <f>", "bxeq lr", "b.w 1b40 <f>", "blt 1b40 <f>"),
    "other": ("pld [r0]", "itet ne", "vmrs APSR_nzcv, fpscr"),
}
CASES = [(t, True, k) for k, texts in KINDS.items() for t in texts]
CASES += [(t, False, k) for k, texts in KINDS_32.items() for t in texts]

SPILLS = {
    # two nested loops: the inner one stores to the stack thrice, by sp and by a register that was set to an address of it; and
    # it fills a buffer there
    "aarch64-linux-gnu": """
    .globl f
f:  sub sp, sp, #128
    str x30, [sp, #120]
    add x9, sp, #32
    mov x10, x0
1:  mov w3, #4
    add x11, sp, #48
    add x13, sp, #64
2:  str q0, [sp, #16]
    str q1, [x11]
    sub x12, x11, #16
    str q1, [x12]
    str q1, [x13]
    str q1, [x13], #16
    add x12, x11, #32
    mov x11, x12
    stp q0, q1, [x9]
    st1 {v2.4s}, [x9]
    str q0, [x10], #16
    str q1, [x9, x3]
    subs w3, w3, #1
    b.ne 2b
    str q0, [sp]
    subs w1, w1, #1
    b.ne 1b
    ldr x9, [sp, #120]
    str q0, [x9]
    add sp, sp, #128
    ret
""",
    "arm-linux-gnueabihf": """
    .fpu neon
    .globl f
f:  push {r4, lr}
    sub sp, sp, #128
    add r4, sp, #32
1:  mov r3, #4
2:  str r0, [sp, #16]
    vst1.64 {d0-d1}, [r4 :128]
    vstmia r4, {d2-d3}
    vst1.32 {d0-d1}, [r2]!
    vstmia r2!, {d2-d3}
    subs r3, r3, #1
    bne 2b
    vstr d0, [sp]
    subs r1, r1, #1
    bne 1b
    add sp, sp, #128
    pop {r4, pc}
""",
}


@pytest.mark.parametrize(("text", "wide", "kind"), CASES, ids=[c[0] for c in CASES])
def test_kind(text, wide, kind):
    assert Instruction(0, text, wide).kind == kind


@pytest.mark.parametrize(("triple", "stores"), [("aarch64-linux-gnu", 5), ("arm-linux-gnueabihf", 5)])
def test_stores_to_the_stack(tmp_path, triple, stores):
    need_program(f"{triple}-gcc", f"install gcc-{triple}")
    (tmp_path / "f.s").write_text(SPILLS[triple], encoding="utf-8")
    subprocess.run([f"{triple}-gcc", "-c", "f.s", "-o", "f.o"], cwd=tmp_path, check=True)
    (function,) = disassemble(tmp_path / "f.o", triple)
    assert function.kinds.count("stack stores") == stores
    assert len(function.loops) == 1
    assert function.stack_stores_in_loops == 3


def built(core, folder, checkpoint):
    """Compile the small model, or take it from the cache of this run; return the bundle."""
    device, cluster = ({"A53": ("rk3399", "little")} | arm_counts.CORES)[core]
    options = CompileOptions(device, lengths=(32, 128), cluster=cluster, verify=False)
    with skips_without_tools():
        compile(checkpoint, folder / "small.so", options)
    return folder / "small.so"


def test_counts_are_those_of_the_arithmetic(small_checkpoint, tmp_path):
    bundle = built("A76", tmp_path, small_checkpoint)
    with skips_without_tools():
        once, again = (bench_arm(bundle, lengths=(32,), model_cycles=False).to_json()["rungs"] for _ in range(2))
    assert once == again
    # Four products of 128x128 in each of two layers, without an activation: a multiply-add makes 4 of float32.
    products = 2 * 4 * 128 * 128 * 32 // 4
    for rung, kept, part in zip(once[:2], (128, 32), (1, 4), strict=True):
        (kernel,) = (k for k in rung["kernels"] if k["symbol"].endswith(f"_t32_k{kept}"))
        assert kernel["kinds"]["multiply-adds"] == products // part
        assert rung["instructions"] == sum(k["instructions"] for k in rung["kernels"])


def test_the_command(small_checkpoint, tmp_path, capsys, monkeypatch):
    bundle = built("A76", tmp_path, small_checkpoint)
    command = ["bench", "arm", str(bundle), "--level", "1,3", "--seq-len", "20"]
    status, printed = main([*command, "--json"]), capsys.readouterr()
    if status == 1 and MISSING.search(printed.err):
        pytest.skip(printed.err)
    ladder = json.loads(printed.out)
    assert [(r["level"], r["length"]) for r in ladder["rungs"]] == [(1, 20), (3, 20)]
    assert bool(ladder["model"]) != bool(ladder["no_cycles"])
    assert main(command) == 0
    table = capsys.readouterr().out
    for kernel in ladder["rungs"][0]["kernels"]:
        assert re.search(rf"^\s*{kernel['symbol']} ", table, re.MULTILINE)
    assert (ladder["model"] or ladder["no_cycles"]) in table
    assert main([*command[:3], "--level", "4"]) == 2 and "--level 4: this bundle has 0 to 3" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert main(command) == 1 and "objdump is not installed" in capsys.readouterr().err


def test_a_bundle_without_names_is_refused(small_checkpoint, tmp_path):
    bundle = built("A76", tmp_path, small_checkpoint)
    strip = need_program("aarch64-linux-gnu-strip", "install binutils-aarch64-linux-gnu")
    subprocess.run([strip, bundle], check=True)
    with pytest.raises(Rt3Error, match="was stripped of the names of its kernels, attention for one"):
        bench_arm(bundle)


def test_an_emulator_without_plugins_is_refused(tmp_path):
    static = need_program("qemu-aarch64-static", "install qemu-user-static")
    with pytest.raises(JobError, match="takes no plugins: install qemu-user, which is not static"):
        build_plugin(static, tmp_path / "plugin.so")


@pytest.mark.parametrize("core", ["A53", "A76", "A7"])
def test_every_group_equals_masked_pytorch(small_checkpoint, tmp_path, core):
    """What rt3 compile runs under qemu are two levels at the shortest length; here every V, padded and at the whole length."""
    bundle = built(core, tmp_path, small_checkpoint)
    target = read_metadata(bundle)["target"]
    with skips_without_tools():
        emulator = emulate.find_emulator(target, choose_compiler(target["mtriple"], None, ""), bundle, bundle.name)
    rng = np.random.default_rng(0)
    for tokens in (20, 128):
        mask = np.ones((1, tokens), np.int64)
        mask[:, tokens - 7 :] = 0
        inputs = {"input_ids": rng.integers(0, 500, (1, tokens)), "attention_mask": mask}
        for level in range(len(small_checkpoint.levels)):
            got = emulator.run(level, Trial("padded", inputs, None), ("last_hidden_state", "pooler_output"))
            want = reference(small_checkpoint, level, **inputs)
            for name, value in want.items():
                a, b = (x[:, : tokens - 7] if x.ndim == 3 else x for x in (got[name], value))
                assert np.abs(a - b).max() <= TOLERANCES["float32"] * np.abs(b).max()


def test_a_bundle_for_another_machine_is_refused(tiny_bundle):
    with pytest.raises(Rt3Error, match="what is counted is for aarch64, armv7a"):
        bench_arm(tiny_bundle)


@pytest.mark.parametrize(
    ("texts", "a53", "a55"),
    [
        (("fmla v0.4s, v1.4s, v2.s[0]", "ldr d3, [x0]"), 2.0, 1.0),
        (("fmla v0.4s, v1.4s, v2.s[0]", "ldr q3, [x0]"), 3.0, 3.0),
        (("fmla v0.4s, v1.4s, v2.s[0]", "add x0, x0, #16"), 1.0, 1.0),
        (("fmla v0.4s, v1.4s, v2.s[0]", *["add x0, x0, #16"] * 3), 2.0, 2.0),
        (("ldp q0, q1, [x0]", "ldp s2, s3, [x1]"), 5.0, 4.0),
        (("ld1r {v0.4s}, [x0]", "stp q1, q2, [x1]"), 3.0, 2.0),
    ],
)
def test_the_rule_of_dual_issue(texts, a53, a55):
    code = [Instruction(4 * i, text, True) for i, text in enumerate(texts)]
    assert [IN_ORDER[f"cortex-{core}"].cycles(code) for core in ("a53", "a55")] == [a53, a55]


def test_llvm_mca_on_two_pipes():
    """Sixteen multiply-adds that do not wait for each other, on a core that starts two a cycle."""
    try:
        model = cycle_model("cortex-a76")
    except JobError as error:
        pytest.skip(str(error))
    code = tuple(Instruction(4 * i, f"fmla v{i}.4s, v30.4s, v31.s[0]", True) for i in range(16))
    loop = Block("loop", (*code, Instruction(64, "b.ne 1b40 <loop+0x40>", True)), 1)
    # A sum is handed on after 2 of a multiply-add's 4 cycles, so what bounds it are the pipes.
    assert model.cycles([loop, loop]) == pytest.approx([8.0, 8.0], rel=0.1)


def test_a_core_without_a_model():
    with pytest.raises(JobError, match="no cycles: cortex-a7 has no model"):
        cycle_model("cortex-a7")
