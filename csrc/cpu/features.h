// What this processor can do, asked at run time.
#pragma once

#include <string>
#include <vector>

namespace jat {

// Names of the instruction sets that matter here and that the running processor (and its OS) supports,
// e.g. {"avx2", "avx512f", "avx512_bf16", "avx512_vnni"} or {"asimd", "bf16", "i8mm"}.
std::vector<std::string> cpu_features();

}  // namespace jat
