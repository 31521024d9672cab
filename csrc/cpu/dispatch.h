// The choice of an instruction set at run time.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace jat {

// Instruction sets that matter here and that the running processor and its system support, by their names in
// /proc/cpuinfo: {"avx2", "avx512f", "avx512_bf16", "avx512_vnni"}, or {"asimd", "bf16", "i8mm"}.
std::vector<std::string> cpu_features();

// `name`: "avx512", "avx2", "generic", or "auto" for the best that the processor has. Throws
// std::invalid_argument for another name, or one that the processor lacks.
const Kernels& select_kernels(const std::string& name);

// Names of the kernels that the running processor can run, best first.
std::vector<std::string> available_kernels();

}  // namespace jat
