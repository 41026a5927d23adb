"""Convolutions of every kind, against PyTorch's own, before the phases and after all of them."""

import numpy as np
import pytest
import torch
from torch import nn
from tvm.relax.frontend.torch import from_exported_program

from rt3_tvm.errors import Rt3Error
from rt3_tvm.frontend.converters import CONVERTERS
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.ir.test_attention import evaluate
from tests.kernels.harness import CPU

CASES = {
    "patches": (nn.Conv2d(3, 8, 4, 4), (2, 3, 8, 12)),
    "patches with a rest": (nn.Conv2d(3, 8, 4, 4), (2, 3, 11, 14)),
    "patches that overlap": (nn.Conv2d(3, 8, (4, 5), (3, 2)), (2, 3, 11, 14)),
    "padded": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 7, 16)),
    "padded on one axis, with a stride": (nn.Conv2d(3, 8, (1, 3), (2, 2), (0, 1), bias=False), (2, 3, 7, 9)),
    "points": (nn.Conv2d(6, 8, 1), (2, 6, 4, 5)),
    "points with a stride": (nn.Conv2d(6, 8, 1, 2), (2, 6, 5, 4)),
    "dilated": (nn.Conv2d(3, 8, 3, dilation=2, padding=2), (2, 3, 8, 9)),
    "groups": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (2, 6, 5, 4)),
    "each channel": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 5, 16)),
    "each channel, strided and dilated": (nn.Conv2d(6, 6, 3, 2, 1, 2, groups=6, bias=False), (2, 6, 9, 9)),
    "each channel twice": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 4)),
    "sequence": (nn.Conv1d(6, 8, 3, 2, 1), (2, 6, 15)),
    "sequence, dilated": (nn.Conv1d(6, 8, 3, dilation=3), (2, 6, 15)),
    "sequence, groups": (nn.Conv1d(6, 8, 4, groups=2, padding=2), (2, 6, 15)),
    "sequence, each channel": (nn.Conv1d(6, 6, 7, groups=6, padding=3), (2, 6, 16)),
    "volume": (nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)), (1, 3, 4, 8, 8)),
    "volume that overlaps": (nn.Conv3d(2, 4, 3, padding=1), (1, 2, 3, 4, 5)),
}


def imported(layer, x):
    program = torch.export.export(layer, (x,)).run_decompositions()
    mod = from_exported_program(program, run_ep_decomposition=False, custom_convert_map=CONVERTERS)
    mod["main"] = mod["main"].with_attr("num_input", 1)
    return mod


@pytest.mark.parametrize("name", CASES)
def test_a_convolution_is_pytorch_s(name):
    layer, shape = CASES[name]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    with torch.no_grad():
        want = layer(x).numpy()
    mod = imported(layer, x)
    context = VariantContext(0, shape[0], want.shape[2], CPU, {}, {})
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(context))
    for module in (mod, lowered):
        got = evaluate(module, [x.numpy()])
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_a_transposed_convolution_is_one_line():
    with pytest.raises(Rt3Error, match=r"^conv[^\n]*: transposed convolutions are not supported$"):
        imported(nn.ConvTranspose2d(3, 8, 2), torch.zeros(1, 3, 4, 4))
