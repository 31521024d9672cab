#include "dispatch.h"

#include <initializer_list>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace jat {

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

std::vector<const Kernels*> usable_kernels() {
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

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) names.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) names.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) names.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) names.emplace_back("avx512bw");
  if (__builtin_cpu_supports("avx512vnni")) names.emplace_back("avx512_vnni");
  if (__builtin_cpu_supports("avx512bf16")) names.emplace_back("avx512_bf16");
#elif defined(__aarch64__) && defined(__linux__)
  // Bits of the Linux arm64 ABI (asm/hwcap.h), spelled out for headers that predate them.
  constexpr unsigned long kAsimd = 1UL << 1, kI8mm = 1UL << 13, kBf16 = 1UL << 14;
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  if (hwcap & kAsimd) names.emplace_back("asimd");
  if (hwcap2 & kI8mm) names.emplace_back("i8mm");
  if (hwcap2 & kBf16) names.emplace_back("bf16");
#endif
  return names;
}

const Kernels& select_kernels(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : usable_kernels()) {
    if (name == "auto" || name == kernels->name) return *kernels;
    names += std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("instruction_set: expected auto" + names + " on this processor, got " + name);
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace jat
