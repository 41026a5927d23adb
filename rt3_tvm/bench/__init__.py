"""What this machine does: kernels and models of ours against dense rivals, its clock and its peak."""
