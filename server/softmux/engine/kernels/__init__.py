"""Triton kernels of the GPU step. Each file holds the kernels and the typed functions that launch them."""
