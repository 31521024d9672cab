"""The backend for NVIDIA GPUs: Triton kernels in CUDA graphs, and one launch a step for a single agent."""
