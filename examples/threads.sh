# Training on a CPU: memory that is kept instead of fresh pages for each large tensor. Sourced by the other scripts.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
