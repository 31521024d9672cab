#include "buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

namespace jat {

namespace {

constexpr size_t kCacheLine = 64, kHugePage = 2 << 20;
constexpr size_t kBlockBytes = 16 << 20;
// Smaller buffers have memory of their own, so that those which come and go do not keep a block.
constexpr size_t kMinSharing = 256 << 10;

size_t rounded_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

std::shared_ptr<uint8_t> allocate(size_t alignment, size_t bytes) {
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded_up(bytes, alignment)));
  if (memory == nullptr) throw std::bad_alloc();
  return std::shared_ptr<uint8_t>(memory, [](uint8_t* data) { std::free(data); });
}

// A part of the newest block, or of a new one.
std::shared_ptr<uint8_t> allocate_shared(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> newest;
  static size_t used = 0, size = 0;

  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<uint8_t> block = newest.lock();
  const size_t needed = rounded_up(bytes, kCacheLine);
  if (block == nullptr || size - used < needed) {
    size = rounded_up(std::max(needed, kBlockBytes), kHugePage);
    block = allocate(kHugePage, size);
#if defined(MADV_HUGEPAGE)
    madvise(block.get(), size, MADV_HUGEPAGE);
#endif
    newest = block;
    used = 0;
  }
  uint8_t* data = block.get() + used;
  used += needed;
  return {std::move(block), data};
}

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  data_ = bytes < kMinSharing ? allocate(kCacheLine, bytes) : allocate_shared(bytes);
  std::memset(data_.get(), 0, bytes);
}

}  // namespace jat
