#include "dot_peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "dispatch.h"
#include "threads/thread_pool.h"

namespace jat {

double dot_peak(DType dtype, int num_threads, int repeats, const std::string& instruction_set) {
  constexpr int kDots = 1 << 19;  // of a piece, about 150 us with AVX-512
  const int num_pieces = 8 * num_threads;
  const Kernels& kernels = select_kernels(instruction_set);
  const double operations = 1.0 * num_pieces * kDots * kBlockRows * columns_per_group(dtype);

  ThreadPool pool(num_threads, 1000);
  std::vector<double> rates;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(num_pieces, 1, [&](int, int, int) {
      float unused[kBlockRows];
      kernels.repeat_dots(dtype, kDots, unused);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    rates.push_back(operations / seconds.count());
  }

  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

}  // namespace jat
