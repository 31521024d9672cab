#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "linear.h"
#include "threads/thread_pool.h"

namespace jat {

double read_bandwidth(size_t num_bytes, int num_threads, int repeats) {
  constexpr int kSums = 32;  // independent sums, so that several vector loads are in flight
  constexpr size_t kPieceWords = (4 << 20) / sizeof(uint64_t);  // about 200 us
  const int num_pieces = static_cast<int>(std::max<size_t>(num_bytes / sizeof(uint64_t) / kPieceWords, 1));
  const Buffer buffer(num_pieces * kPieceWords * sizeof(uint64_t));
  std::memset(buffer.as<uint8_t>(), 1, buffer.bytes());  // untouched, it could be one shared page of zeros

  ThreadPool pool(num_threads, 1000);
  std::atomic<uint64_t> total{0};
  std::vector<double> rates;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(num_pieces, 1, [&](int piece, int, int) {
      const uint64_t* data = buffer.as<uint64_t>() + kPieceWords * piece;
      uint64_t sums[kSums] = {};
      for (size_t i = 0; i < kPieceWords; i += kSums) {
        for (int j = 0; j < kSums; j += 8) __builtin_prefetch(data + i + j + 1024);  // 8 KiB ahead
        for (int j = 0; j < kSums; ++j) sums[j] += data[i + j];
      }
      uint64_t sum = 0;
      for (const uint64_t s : sums) sum += s;
      total.fetch_add(sum, std::memory_order_relaxed);  // so that the reads are not optimised away
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    rates.push_back(static_cast<double>(buffer.bytes()) / seconds.count());
  }

  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

}  // namespace jat
