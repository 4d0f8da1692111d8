// The Python module rvi_fast._C: addresses of tensors in, nothing out. rvi_fast/cpp has checked
// dtypes, shapes and strides; what it cannot check cheaply, the values that addresses are made of,
// is checked here before anything is computed or written: row numbers, kept bits, clocks.
//
// rvi_fast/_C.pyi says the same as SIGNATURES, and rvi_fast/cpp/extension.py holds the digest of
// it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/bindings.h"
#include "dispatch.h"
#include "parallel.h"

namespace rvi {

void check_index(const Index& index, std::int64_t num_data) {
  std::int64_t low = 0, high = -1;
  for (std::int64_t i = 0; i < index.size; ++i) {
    const std::int64_t row = index[i];
    low = row < low ? row : low;
    high = row > high ? row : high;
  }
  if (low < 0 || high >= num_data) {
    throw py::index_error("index: expected row numbers from 0 to " + std::to_string(num_data - 1) +
                          ", got " + std::to_string(low < 0 ? low : high));
  }
}

namespace {

template <class F, class... Names>
void bind_path(py::module_& module, const char* name, const char* doc, F* function,
               Names... names) {
  module.def(name, function, doc, py::arg(names)...);
  add_signature(module, signature(name, function, names...));
}

}  // namespace
}  // namespace rvi

PYBIND11_MODULE(_C, module) {
  using namespace rvi;
  watch_forks();
  choose_cpu_path();

  module.doc() =
      "The kernels in C++: each takes addresses of tensors and writes its results there.";
  module.attr("SIGNATURES") = "";
  bind_path(module, "cpu_path", "The name of the path that runs.", &cpu_path);
  bind_path(module, "cpu_paths", "The paths that this machine can run, the best first.",
            &cpu_paths);
  bind_path(module, "set_cpu_path",
            "Takes another path, for all threads; ValueError if there is none.", &set_cpu_path,
            "name");
  bind_relay_sample(module);
  bind_log_likelihood(module);
  bind_adam(module);
}
