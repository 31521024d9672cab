"""Native CPU parts of jat_engine, built from csrc/cpu."""

compiler: str

def cpu_features() -> list[str]:
    """Instruction sets of the running processor that matter here, e.g. ['avx2', 'avx512_bf16']."""
