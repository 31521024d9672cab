// Memory of weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace jat {

// Zeroed memory, aligned to a cache line. Large buffers share blocks of huge pages, where the system has them:
// prefetching ends at a page's end, and 4 KB pages cost a third of the bandwidth. A block is freed with its
// last buffer.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0);
  Buffer(Buffer&&) = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<uint8_t> data_;  // keeps its block
  size_t bytes_;
};

}  // namespace jat
