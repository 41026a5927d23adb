"""Running bundles from Python: NumPy in, NumPy out, neither torch nor the compiler needed."""

from rt3_tvm.runtime.bundle import Bundle, LevelInfo, load

__all__ = ["Bundle", "LevelInfo", "load"]
