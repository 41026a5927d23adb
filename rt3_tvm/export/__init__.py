"""From a model to the graph that is compiled: torch.export, what is rewritten for it, and what padding means to a model."""

from rt3_tvm.export.program import (
    LINEAR_OPERATORS,
    ExportForm,
    LinearLayer,
    embeddings_in,
    export,
    find_linears,
    linears_in,
    outputs_of,
    parameter_names,
)

__all__ = [
    "LINEAR_OPERATORS",
    "ExportForm",
    "LinearLayer",
    "embeddings_in",
    "export",
    "find_linears",
    "linears_in",
    "outputs_of",
    "parameter_names",
]
