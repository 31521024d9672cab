#include "kernels.h"

#include <stdexcept>

#include "features.h"

namespace jat {

#if defined(__x86_64__)
extern const Kernels kAvx512Kernels, kAvx2Kernels;
#endif
extern const Kernels kGenericKernels;

namespace {

#if defined(__x86_64__)
bool has_all(const std::vector<std::string>& features, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    bool found = false;
    for (const std::string& feature : features) found = found || feature == name;
    if (!found) return false;
  }
  return true;
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> kernels;
#if defined(__x86_64__)
  const std::vector<std::string> features = cpu_features();
  if (has_all(features, {"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"}))
    kernels.push_back(&kAvx512Kernels);
  if (has_all(features, {"avx2", "fma"})) kernels.push_back(&kAvx2Kernels);
#endif
  kernels.push_back(&kGenericKernels);
  return kernels;
}

}  // namespace

const Kernels& select_kernels(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : usable()) {
    if (name == "auto" || name == kernels->name) return *kernels;
    names += std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("instruction_set: expected auto" + names + " on this processor, got " + name);
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace jat
