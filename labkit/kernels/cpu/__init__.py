"""The kernels of `labkit.kernels` for a CPU: Numba, sixteen lanes at a time, rows over threads."""
