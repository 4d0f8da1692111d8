// What the parts of the module share.

#pragma once

#include <cstdint>

#include "bindings/bind.h"
#include "calls.h"

namespace rvi {

// Of a tensor's first element; 0 where there is no tensor.
using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Throws IndexError where a row number is not one of a table of `num_data` rows.
void check_index(const Index& index, std::int64_t num_data);

void bind_relay_sample(py::module_& module);
void bind_log_likelihood(py::module_& module);
void bind_adam(py::module_& module);

}  // namespace rvi
