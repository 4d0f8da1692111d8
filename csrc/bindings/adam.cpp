#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "calls.h"
#include "dispatch.h"
#include "parallel.h"

namespace rvi {
namespace {

// Shared parameters whose update costs about as much as a row's.
constexpr std::int64_t PARAMS_PER_ROW = 256;

// Where the history is read and written: at the steps of the rows, from clock[1] to clock[0], and
// at `steps` more.
void check_steps(const RowAdam& call, std::int64_t history_size, std::int64_t steps) {
  const std::int64_t now = call.clock[0], start = call.clock[1];
  if (start < 0 || now < start || now - start >= history_size - steps) {
    throw py::value_error("clock: expected 0 <= clock[1] <= clock[0] < clock[1] + " +
                          std::to_string(history_size - steps) +
                          ", as long as the history is, got [" + std::to_string(now) + ", " +
                          std::to_string(start) + "]");
  }
  for (std::int64_t i = 0; i < call.index.size; ++i) {
    const std::int64_t row = call.index[i], last = call.row_step[row];
    if (last < start || last > now) {
      throw py::value_error("row_step: expected " + std::to_string(start) + " to " +
                            std::to_string(now) + ", got " + std::to_string(last) + " in row " +
                            std::to_string(row));
    }
  }
}

// For each place in the index the first one of the same row; empty where each row stands once.
std::vector<std::int64_t> first_places(const Index& index) {
  int shift = 62;  // the upper bits of a product: a table at least twice as long as the batch
  while (shift > 1 && (std::int64_t(1) << (64 - shift)) < 2 * index.size) --shift;
  static thread_local std::vector<std::int64_t> seen;
  seen.assign(std::size_t(1) << (64 - shift), -1);
  const std::size_t last = seen.size() - 1;
  std::vector<std::int64_t> places;
  for (std::int64_t i = 0; i < index.size; ++i) {
    const std::int64_t row = index[i];
    std::size_t at = (std::size_t)((std::uint64_t)row * 0x9E3779B97F4A7C15u >> shift);
    while (seen[at] >= 0 && index[seen[at]] != row) at = (at + 1) & last;
    if (seen[at] < 0) {
      seen[at] = i;
    } else if (places.empty()) {
      places.resize(index.size);
      std::iota(places.begin(), places.begin() + i, 0);
    }
    if (!places.empty()) places[i] = seen[at];
  }
  return places;
}

// Each row once, and the sum of its gradients, in the order of the index.
template <class F>
struct Summed {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> keys;
  std::vector<F> grads;

  Summed(const Index& index, const Index& key_index, const std::vector<std::int64_t>& places,
         const F* grad, std::int64_t width) {
    std::vector<std::int64_t> at(places.size());
    for (std::int64_t i = 0; i < index.size; ++i, grad += width) {
      if (places[i] == i) {
        at[i] = (std::int64_t)rows.size();
        rows.push_back(index[i]);
        keys.push_back(key_index[i]);
        grads.insert(grads.end(), grad, grad + width);
      } else {
        F* to = grads.data() + at[places[i]] * width;
        for (std::int64_t column = 0; column < width; ++column) to[column] += grad[column];
      }
    }
  }
};

void step_rows(RowAdam& call, RowTypes types, int threads, std::int64_t history_size) {
  if (call.mode == AdamMode::dense) check_steps(call, history_size, 1);
  py::gil_scoped_release release;
  kernels().row_adam_step[(int)types](call, threads_for(call.index.size, threads));
}

template <class F>
void step_summed(RowAdam& call, const std::vector<std::int64_t>& places, RowTypes types,
                 int threads, std::int64_t history_size) {
  const Summed<F> summed(call.index, call.key_index, places, static_cast<const F*>(call.grad),
                         call.width);
  call.index = {summed.rows.data(), true, (std::int64_t)summed.rows.size()};
  call.key_index = {summed.keys.data(), true, call.index.size};
  call.grad = summed.grads.data();
  step_rows(call, types, threads, history_size);
}

RowAdam adam_call(std::int64_t num_data, std::int64_t width, Address rows, Address exp_avg,
                  Address exp_avg_sq, Address row_step, const Index& index, const Index& key_index,
                  Address clock, const Span& history, double beta1, double beta2, double eps) {
  RowAdam call;
  check_index(index, num_data);
  call.index = index;
  call.key_index = key_index;
  call.num_data = num_data;
  call.width = width;
  call.rows = pointer<void>(rows);
  call.exp_avg = pointer<void>(exp_avg);
  call.exp_avg_sq = pointer<void>(exp_avg_sq);
  call.row_step = pointer<std::int32_t>(row_step);
  call.clock = pointer<std::int64_t>(clock);
  call.history = pointer<double>(history.first);
  call.beta1 = beta1;
  call.beta2 = beta2;
  call.eps = eps;
  return call;
}

void row_adam_catch_up(RowTypes types, int threads, std::int64_t num_data, std::int64_t width,
                       Address rows, Address exp_avg, Address exp_avg_sq, Address row_step,
                       const Index& index, const Index& key_index, Address clock,
                       const Span& history, double beta1, double beta2, double eps) {
  const RowAdam call = adam_call(num_data, width, rows, exp_avg, exp_avg_sq, row_step, index,
                                 key_index, clock, history, beta1, beta2, eps);
  check_steps(call, history.second, 0);
  py::gil_scoped_release release;
  kernels().row_adam_catch_up[(int)types](call, threads_for(index.size, threads));
}

void row_adam_step(RowTypes types, int threads, std::int64_t num_data, std::int64_t width,
                   Address rows, Address exp_avg, Address exp_avg_sq, Address row_step,
                   const Index& index, const Index& key_index, Address clock, const Span& history,
                   double beta1, double beta2, double eps, Address grad, Address lr,
                   double weight_decay, AdamMode mode, bool repeats) {
  RowAdam call = adam_call(num_data, width, rows, exp_avg, exp_avg_sq, row_step, index, key_index,
                           clock, history, beta1, beta2, eps);
  call.grad = pointer<void>(grad);
  call.lr = *pointer<double>(lr);
  call.weight_decay = weight_decay;
  call.mode = mode;
  const std::vector<std::int64_t> places = first_places(index);
  if (places.empty()) {
    step_rows(call, types, threads, history.second);
  } else if (!repeats) {
    std::int64_t i = 0;
    while (places[i] == i) ++i;
    throw py::value_error("index: expected each row once, got row " + std::to_string(index[i]) +
                          " twice; add its gradients up");
  } else if (types == RowTypes::float64) {
    step_summed<double>(call, places, types, threads, history.second);
  } else {
    step_summed<float>(call, places, types, threads, history.second);
  }
}

void adam_step(bool is_double, int threads, std::int64_t size, std::int64_t num_parts,
               Address params, Address exp_avg, Address exp_avg_sq, Address grads, Address step,
               Address lr, double beta1, double beta2, double eps, double weight_decay) {
  AdamStep call;
  call.size = size;
  call.num_parts = num_parts;
  call.params = pointer<void>(params);
  call.exp_avg = pointer<void>(exp_avg);
  call.exp_avg_sq = pointer<void>(exp_avg_sq);
  call.grads = pointer<void>(grads);
  call.step = pointer<std::int64_t>(step);
  call.lr = *pointer<double>(lr);
  call.beta1 = beta1;
  call.beta2 = beta2;
  call.eps = eps;
  call.weight_decay = weight_decay;
  py::gil_scoped_release release;
  kernels().adam_step[is_double](call, threads_for(size / PARAMS_PER_ROW, threads));
}

}  // namespace

void bind_adam(py::module_& module) {
  bind_enum<RowTypes>(module, "RowTypes", "The element types of rows and moments.",
                      {{"float32", RowTypes::float32},
                       {"float64", RowTypes::float64},
                       {"float32_bfloat16", RowTypes::float32_bfloat16}});
  bind_enum<AdamMode>(
      module, "AdamMode", "What becomes of the rows that are not in a batch.",
      {{"dense", AdamMode::dense}, {"lazy", AdamMode::lazy}, {"row", AdamMode::row}});
  bind<&row_adam_catch_up>(
      module, "row_adam_catch_up",
      "rvi_fast.reference.row_adam_catch_up, in place: rows, exp_avg and exp_avg_sq [num_data, "
      "width],\n"
      "row_step [num_data] int32, clock [2] int64, history [steps, 16] float64 and its steps;\n"
      "key_index keys the random bits of bfloat16 moments, of each place in the index. IndexError\n"
      "where a row number is not of the table, ValueError where clock or row_step are not of the\n"
      "history.",
      "types", "threads", "num_data", "width", "rows", "exp_avg", "exp_avg_sq", "row_step", "index",
      "key_index", "clock", "history", "beta1", "beta2", "eps");
  bind<&row_adam_step>(
      module, "row_adam_step",
      "rvi_fast.reference.row_adam_step, in place, with grad [B, width] and lr [] float64. Raises "
      "what\n"
      "row_adam_catch_up does, and ValueError where a row stands twice in the index and is not\n"
      "allowed to by repeats, which adds its gradients up.",
      "types", "threads", "num_data", "width", "rows", "exp_avg", "exp_avg_sq", "row_step", "index",
      "key_index", "clock", "history", "beta1", "beta2", "eps", "grad", "lr", "weight_decay",
      "mode", "repeats");
  bind<&adam_step>(module, "adam_step",
                   "rvi_fast.reference.adam_step, in place: params, exp_avg and exp_avg_sq [size], "
                   "step [1] int64,\n"
                   "with grads [num_parts, size] and lr [] float64.",
                   "is_double", "threads", "size", "num_parts", "params", "exp_avg", "exp_avg_sq",
                   "grads", "step", "lr", "beta1", "beta2", "eps", "weight_decay");
}

}  // namespace rvi
