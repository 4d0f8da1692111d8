// Threads of OpenMP, where there is OpenMP.

#pragma once

#include <cstdint>

namespace rvi {

// How many of `threads` are worth their start for so many rows; 1 in a forked process.
int threads_for(std::int64_t rows, int threads);

// Calls body(context, begin, end) for ranges that cover 0..count, on up to `threads` threads.
void parallel_ranges(std::int64_t count, int threads,
                     void (*body)(void* context, std::int64_t begin, std::int64_t end),
                     void* context);

// To be called once: a process that is forked later runs in one thread.
void watch_forks();

}  // namespace rvi
