// Functions of the module whose arguments are given by keyword, and the text of all signatures.
//
// pybind11 makes a Python string of each name at every call and looks for it among the keywords;
// for the ten to twenty arguments of a kernel that is more work than a small kernel. Here the names
// are made once, and as callers write them in the order of the signature, one comparison finds
// each. Python passes up to fifteen keywords as they stand and puts more into a dict first.

#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "calls.h"

namespace py = pybind11;

namespace pybind11 {
namespace detail {

// (address, is_int64, size)
template <>
struct type_caster<rvi::Index> {
  PYBIND11_TYPE_CASTER(rvi::Index, const_name("tuple[int, bool, int]"));

  bool load(handle source, bool) {
    if (!PyTuple_CheckExact(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 3) return false;
    make_caster<std::uintptr_t> address;
    make_caster<bool> is_int64;
    make_caster<std::int64_t> size;
    if (!address.load(PyTuple_GET_ITEM(source.ptr(), 0), false) ||
        !is_int64.load(PyTuple_GET_ITEM(source.ptr(), 1), false) ||
        !size.load(PyTuple_GET_ITEM(source.ptr(), 2), false)) {
      return false;
    }
    value.data = reinterpret_cast<const void*>((std::uintptr_t)address);
    value.is_int64 = (bool)is_int64;
    value.size = (std::int64_t)size;
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11

namespace rvi {

// Address and number of entries.
using Span = std::pair<std::uintptr_t, std::int64_t>;

// How the stub rvi_fast/_C.pyi writes a type.
template <class T>
std::string type_name() {
  using Value = std::remove_cv_t<std::remove_reference_t<T>>;
  if constexpr (std::is_void_v<Value>) {
    return "None";
  } else if constexpr (std::is_same_v<Value, bool>) {
    return "bool";
  } else if constexpr (std::is_integral_v<Value>) {
    return "int";
  } else if constexpr (std::is_floating_point_v<Value>) {
    return "float";
  } else if constexpr (std::is_same_v<Value, std::string> ||
                       std::is_same_v<Value, std::string_view>) {
    return "str";
  } else if constexpr (std::is_same_v<Value, std::vector<int>>) {
    return "Sequence[int]";
  } else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
    return "list[str]";
  } else if constexpr (std::is_same_v<Value, Index>) {
    return "tuple[int, bool, int]";
  } else if constexpr (std::is_same_v<Value, Span>) {
    return "tuple[int, int]";
  } else {
    return py::type::of(py::cast(Value{})).attr("__name__").template cast<std::string>();
  }
}

template <class R, class... A, class... Names>
std::string signature(const char* name, R (*)(A...), Names... names) {
  static_assert(sizeof...(A) == sizeof...(Names), "each argument has a name");
  std::string arguments;
  ((arguments += std::string(", ") + names + ": " + type_name<A>()), ...);
  return name + ("(" + (arguments.empty() ? "" : "*" + arguments)) + ") -> " + type_name<R>();
}

// Adds a line to the text of signatures, by which rvi_fast recognises the module.
inline void add_signature(py::module_& module, const std::string& line) {
  module.attr("SIGNATURES") = module.attr("SIGNATURES").cast<std::string>() + line + "\n";
}

template <class E>
struct Enumerator {
  const char* name;
  E value;
};

template <class E, std::size_t N>
void bind_enum(py::module_& module, const char* name, const char* doc,
               const Enumerator<E> (&values)[N]) {
  py::enum_<E> type(module, name, doc);
  std::string line = std::string("class ") + name + ":";
  for (const Enumerator<E>& each : values) {
    type.value(each.name, each.value);
    line += std::string(" ") + each.name;
  }
  add_signature(module, line);
}

// F as Python sees it.
template <auto F>
struct Bound;

template <class R, class... A, R (*F)(A...)>
struct Bound<F> {
  static constexpr std::size_t COUNT = sizeof...(A);
  static inline PyObject* names[COUNT] = {};
  static inline std::string types[COUNT];
  static inline std::string doc;
  static inline PyMethodDef definition = {};

  static void name_types() {
    std::size_t i = 0;
    ((types[i++] = type_name<A>()), ...);
  }

  // the place of a keyword in the signature, COUNT where it has none; most often it is `guess`
  static std::size_t place(PyObject* keyword, std::size_t guess) {
    if (guess < COUNT && names[guess] == keyword) return guess;
    std::size_t at = 0;
    while (at < COUNT && names[at] != keyword && PyUnicode_Compare(names[at], keyword) != 0) ++at;
    return at;
  }

  template <std::size_t... I>
  static PyObject* run(PyObject* const* values, std::index_sequence<I...>) {
    std::tuple<py::detail::make_caster<A>...> casters;
    // a float may be given as an int, and nothing else as what it is not
    const bool loaded[] = {std::get<I>(casters).load(
        values[I], std::is_floating_point_v<std::remove_reference_t<A>>)...};
    for (std::size_t i = 0; i < COUNT; ++i) {
      if (loaded[i]) continue;
      return PyErr_Format(PyExc_TypeError, "%U: expected %s, got %R", names[i], types[i].c_str(),
                          values[i]);
    }
    F(py::detail::cast_op<A>(std::get<I>(casters))...);
    Py_RETURN_NONE;
  }

  static PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t positional,
                        PyObject* keywords) {
    static_assert(std::is_void_v<R>, "results are written to addresses");
    if (positional > 0) {
      return PyErr_Format(PyExc_TypeError, "%s: expected arguments by keyword, got %zd by position",
                          definition.ml_name, positional);
    }
    PyObject* values[COUNT] = {};
    const std::size_t count = keywords ? (std::size_t)PyTuple_GET_SIZE(keywords) : 0;
    for (std::size_t i = 0; i < count; ++i) {
      PyObject* keyword = PyTuple_GET_ITEM(keywords, i);
      const std::size_t at = place(keyword, i);
      if (at == COUNT) {
        return PyErr_Format(PyExc_TypeError, "%s: expected the arguments that help() shows, got %R",
                            definition.ml_name, keyword);
      }
      values[at] = arguments[i];
    }
    for (std::size_t i = 0; i < COUNT; ++i) {
      if (values[i]) continue;
      return PyErr_Format(PyExc_TypeError, "%s: expected the argument %R, got none",
                          definition.ml_name, names[i]);
    }
    try {
      return run(values, std::make_index_sequence<COUNT>());
    } catch (py::error_already_set& error) {
      error.restore();
    } catch (const py::builtin_exception& error) {
      error.set_error();
    } catch (const std::invalid_argument& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }
};

// A class of which Python only makes objects, by F.
template <class T, auto F, class... Names>
void bind_init(py::module_& module, const char* name, const char* doc, Names... names) {
  py::class_<T>(module, name, doc).def(py::init(F), py::kw_only(), py::arg(names)...);
  add_signature(module, signature(name, F, names...));
}

// Puts F into the module, with a docstring and the names of its arguments.
template <auto F, class... Names>
void bind(py::module_& module, const char* name, const char* doc, Names... names) {
  using Function = Bound<F>;
  const char* const all[] = {names...};
  std::string listed;
  for (std::size_t i = 0; i < Function::COUNT; ++i) {
    Function::names[i] = PyUnicode_InternFromString(all[i]);
    listed += std::string(", ") + all[i];
  }
  Function::name_types();
  const std::string line = signature(name, F, names...);
  // the first line is what inspect.signature reads
  Function::doc = name + ("($module, *" + listed) + ")\n--\n\n" + line + "\n\n" + doc;
  Function::definition = {name, reinterpret_cast<PyCFunction>((void*)&Function::call),
                          METH_FASTCALL | METH_KEYWORDS, Function::doc.c_str()};
  module.attr(name) = py::reinterpret_steal<py::object>(
      PyCFunction_NewEx(&Function::definition, module.ptr(), module.attr("__name__").ptr()));
  add_signature(module, line);
}

}  // namespace rvi
