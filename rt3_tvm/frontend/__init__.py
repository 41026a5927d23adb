"""From a torch model to Relax."""

from rt3_tvm.frontend.from_torch import ImportedModel, import_model

__all__ = ["ImportedModel", "import_model"]
