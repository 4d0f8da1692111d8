// Which of the compiled paths runs: the best that this machine has, or the one asked for.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "calls.h"

namespace rvi {

// The kernels of one path: of each, those for float and double, or those of `RowTypes`.
struct Kernels {
  const char* const* laws;  // names, by their number in a call; null behind the last
  void (*relay_sample_fwd[2])(const RelaySampleFwd&, int threads);
  void (*relay_sample_bwd[2])(const RelaySampleBwd&, int threads);
  void (*log_likelihood[2])(const LogLikelihood&, int threads);
  void (*linear_log_likelihood[2])(const LinearLogLikelihood&, int threads);
  void (*row_adam_catch_up[3])(const RowAdam&, int threads);
  void (*row_adam_step[3])(const RowAdam&, int threads);
  void (*adam_step[2])(const AdamStep&, int threads);
  void (*philox)(const std::uint32_t* counter, const std::uint32_t* key, std::uint32_t* words,
                 std::int64_t count);
};

// Those of the path that runs.
const Kernels& kernels();

// The number of a law in a call; throws std::invalid_argument where none has the name.
int law_of(std::string_view name);

// The name of the path that runs: "avx512", "avx2", ...
std::string cpu_path();

// The names of all paths that this machine can run, the best first.
std::vector<std::string> cpu_paths();

// Takes the path of that name; throws std::invalid_argument where this machine has none.
void set_cpu_path(const std::string& name);

// Takes the one that RVI_FAST_CPU names, or else the best.
void choose_cpu_path();

}  // namespace rvi
