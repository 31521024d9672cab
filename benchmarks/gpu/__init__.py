"""Hold the parts of benchmarks/gpu_report.py: one section per file, each run in a process of its own."""
