"""Backend for NVIDIA GPUs: Triton kernels in CUDA graphs, and a persistent kernel for a single agent."""
