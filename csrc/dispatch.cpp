#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace rvi {

// each in cpu/<path>.cpp
extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif
#if defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

namespace {

struct Path {
  const char* name;
  const Kernels* kernels;
  bool (*runs_here)();
};

// the best first
const Path PATHS[] = {
#if defined(__x86_64__)
    {"avx512", &avx512_kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
    {"avx2", &avx2_kernels,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi2");
     }},
#endif
#if defined(__aarch64__)
    {"neon", &neon_kernels, [] { return true; }},
#endif
    {"portable", &portable_kernels, [] { return true; }},
};

const Path* running = nullptr;

bool runs_here(const Path& path) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  return path.runs_here();
}

}  // namespace

const Kernels& kernels() { return *running->kernels; }

int law_of(std::string_view name) {
  const char* const* laws = kernels().laws;
  for (int law = 0; laws[law]; ++law) {
    if (name == laws[law]) return law;
  }
  std::string expected;
  for (int law = 0; laws[law]; ++law) expected += (law ? ", " : "") + std::string(laws[law]);
  throw std::invalid_argument("law: expected one of " + expected + ", got '" + std::string(name) +
                              "'");
}

std::string cpu_path() { return running->name; }

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (const Path& path : PATHS) {
    if (runs_here(path)) names.push_back(path.name);
  }
  return names;
}

void set_cpu_path(const std::string& name) {
  std::string expected;
  for (const Path& path : PATHS) {
    if (!runs_here(path)) continue;
    if (name == path.name) {
      running = &path;
      return;
    }
    expected += (expected.empty() ? "" : ", ") + std::string(path.name);
  }
  throw std::invalid_argument("RVI_FAST_CPU: expected one of " + expected +
                              ", which this machine can run, got '" + name + "'");
}

void choose_cpu_path() {
  const char* wanted = std::getenv("RVI_FAST_CPU");
  set_cpu_path(wanted && *wanted ? wanted : cpu_paths().front());
}

}  // namespace rvi
