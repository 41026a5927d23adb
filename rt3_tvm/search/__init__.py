"""RT3's search: from a dense model and a task to a checkpoint with a level for each frequency."""

from rt3_tvm.search.options import ControllerOptions, RewardOptions, SearchOptions
from rt3_tvm.search.pipeline import Found, folder_of, search
from rt3_tvm.search.progress import Bars

__all__ = ["Bars", "ControllerOptions", "Found", "RewardOptions", "SearchOptions", "folder_of", "search"]
