"""The kernels of `labkit.kernels` for a GPU: Triton, which is optional (`pip install triton`)."""
