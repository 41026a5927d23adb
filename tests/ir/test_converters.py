"""Operators that the importer converts by itself, against PyTorch's own, before the phases and after all of them."""

import numpy as np
import torch
from torch import nn

from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.ir.test_attention import evaluate
from tests.ir.test_convolutions import imported
from tests.kernels.harness import CPU


class Selected(nn.Module):
    """Places along an axis, as XLNet shifts its scores."""

    def forward(self, x):
        return torch.index_select(x, 2, torch.tensor([4, 0, 2, 2]))


def test_a_look_up_along_an_axis_is_pytorch_s_and_quiet(capfd):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 5, 16)).astype(np.float32))
    mod = imported(Selected(), x)
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(VariantContext(0, 2, 3, CPU, {}, {})))
    for module in (mod, lowered):
        np.testing.assert_array_equal(evaluate(module, [x.numpy()]), Selected()(x).numpy())
    assert "Fast mode" not in capfd.readouterr().err
