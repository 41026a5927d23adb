"""Phase 1: remove what export leaves behind, so that the composites of the next phase can be seen."""

import tvm
from tvm import relax

from rt3_tvm.transform.own_transposes import OwnTransposes
from rt3_tvm.transform.recognise_idioms import RecogniseIdioms


def simplify_passes() -> list[tvm.transform.Pass]:
    """Return phase 1."""
    return [
        RecogniseIdioms(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldConstant(),
        relax.transform.CanonicalizeBindings(),  # fields of constants that were cut in two
        relax.transform.DeadCodeElimination(),
        OwnTransposes(),
    ]
