#include "features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace jat {

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

}  // namespace jat
