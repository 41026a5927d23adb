"""From an imported Relax module to scheduled kernels: see pipeline.py."""
