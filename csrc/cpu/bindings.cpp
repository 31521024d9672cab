// The Python module jat_engine._cpu. Free of torch headers: it builds in seconds, against any torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "features.h"

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Native CPU parts of jat_engine.";
  module.def("cpu_features", &jat::cpu_features,
             "Instruction sets of the running processor that matter here, e.g. ['avx2', 'avx512_bf16'].");
  module.attr("compiler") =
#if defined(__clang__)
      "clang " __clang_version__;
#elif defined(__GNUC__)
      "gcc " __VERSION__;
#else
      "unknown";
#endif
}
