#include "parallel.h"

#include <atomic>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace rvi {
namespace {

// Rows that make a second thread worth its start.
constexpr std::int64_t ROWS_PER_THREAD = 2048;
// After a fork the threads of OpenMP are gone and its next parallel region would wait for them.
std::atomic<bool> forked{false};

}  // namespace

int threads_for(std::int64_t rows, int threads) {
#if defined(_OPENMP)
  if (forked.load(std::memory_order_relaxed)) return 1;
  const std::int64_t useful = rows / ROWS_PER_THREAD;
  if (useful < threads) threads = (int)useful;
  return threads < 1 ? 1 : threads;
#else
  (void)rows, (void)threads;
  return 1;
#endif
}

void parallel_ranges(std::int64_t count, int threads,
                     void (*body)(void* context, std::int64_t begin, std::int64_t end),
                     void* context) {
#if defined(_OPENMP)
  if (threads > count) threads = (int)count;
  // an exception may not leave a parallel region; the only one there is: no memory
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(threads)
  {
    // there may be fewer threads than asked for
    const std::int64_t number = omp_get_thread_num(), total = omp_get_num_threads();
    try {
      body(context, count * number / total, count * (number + 1) / total);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  }
  if (failed) throw std::bad_alloc();
#else
  (void)threads;
  body(context, 0, count);
#endif
}

void watch_forks() {
#if defined(_OPENMP) && !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
}

}  // namespace rvi
