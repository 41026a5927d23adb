"""RT3's search: from a dense model and a task to a checkpoint with a level for each frequency."""

from typing import TYPE_CHECKING

from rt3_tvm.lazy import offer
from rt3_tvm.search.options import ControllerOptions, RewardOptions, SearchOptions

if TYPE_CHECKING:
    from rt3_tvm.search.pipeline import Found, folder_of, search
    from rt3_tvm.search.progress import Bars

__all__ = ["Bars", "ControllerOptions", "Found", "RewardOptions", "SearchOptions", "folder_of", "search"]
_PIPELINE = "rt3_tvm.search.pipeline"
__getattr__ = offer(
    __name__,
    {
        "Bars": ("rt3_tvm.search.progress", "Bars"),
        "Found": (_PIPELINE, "Found"),
        "folder_of": (_PIPELINE, "folder_of"),
        "search": (_PIPELINE, "search"),
    },
)
