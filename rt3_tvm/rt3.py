"""RT3's constants, each in its unit. Source: RT3's publication (DAC 2021, arXiv 2102.06336) and its public code."""

# What it ran on.
DEVICE = "odroid-xu3"
FREQUENCIES_HZ = (1.4e9, 1.0e9, 0.8e9)
BATTERY_J = 37_800.0
SHARES = (0.5, 0.3, 0.2)
"""Parts of the charge that each frequency spends, from the highest down; the levels' weights in loss and accuracy too."""

# Its latency model: one token, a 3 GHz CPU.
REFERENCE_HZ = 3.0e9
MS_PER_MULTIPLY, MS_PER_ADD = 0.014370e-4, 0.014575e-4

# Its results: what `rt3 simulate --paper` starts from.
BACKBONE_SPARSITY = 0.6431
DEADLINES_S = (0.115, 0.104, 0.094)

# Its training and search.
BATCH, STRETCH = 20, 35
"""Stretches of a batch, and words of a stretch."""
CLIP = 0.5
"""Largest norm of a gradient."""
LASSO = 1e-4
BLOCK_ROWS = 100
PATTERN_SPARSITIES = (0.01, 0.13, 0.25, 0.37, 0.50, 0.62, 0.75, 0.87, 0.93, 0.99)
"""What a pattern cuts of what block pruning left."""
MAP_BLOCKS, LEAST_MAPS = 10, 16
"""Blocks that an importance map sums, and maps from which the most important are taken."""
CONTROLLER_UNITS = 35

# Its reward.
ACCURACY_MIN, ACCURACY_DENSE = 0.85, 0.9745
"""A_min and A_orig."""
RUNS_OFFSET, RUNS_SCALE = 2.3e6, 2.2e6
