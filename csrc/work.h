// What a kernel takes of the machine beside its vectors: memory for one call, threads, prefetches.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "parallel.h"
#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {

// Memory for one call, aligned to vectors, freed with the object.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  // room for `count` elements, not initialised; slack of two vectors at the end
  template <class T>
  T* make(std::int64_t count) {
    std::size_t bytes = (std::size_t)count * sizeof(T) + 2 * VECTOR_BYTES;
    bytes = (bytes + 63) / 64 * 64;
    memory_ = std::aligned_alloc(64, bytes);
    if (memory_ == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

// work(begin, end) for ranges that cover 0..count.
template <class Work>
inline void parallel(std::int64_t count, int threads, Work& work) {
  if (threads <= 1 || count <= 1) {
    if (count > 0) work(0, count);
    return;
  }
  parallel_ranges(
      count, threads,
      [](void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<Work*>(context))(begin, end);
      },
      &work);
}

// Fetches a row that is needed soon.
template <class F>
RVI_INLINE void prefetch_row(const F* row, int width) {
  const char* begin = reinterpret_cast<const char*>(row);
  for (std::size_t byte = 0; byte < width * sizeof(F); byte += 64) __builtin_prefetch(begin + byte);
}

}  // namespace RVI_PATH
}  // namespace rvi
