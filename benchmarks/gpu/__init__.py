"""The parts of benchmarks/gpu_report.py: a section a file, each run in a process of its own."""
