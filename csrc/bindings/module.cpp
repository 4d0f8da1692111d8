// The Python module rvi_fast._C: addresses of tensors in, nothing out. rvi_fast/cpp.py has checked
// dtypes, shapes and strides; what it cannot check cheaply, the values that addresses are made of,
// is checked here before anything is computed or written: row numbers, kept bits, clocks.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "calls.h"
#include "dispatch.h"
#include "parallel.h"

namespace py = pybind11;

namespace rvi {
namespace {

// Goes up with every change of a signature below; rvi_fast/cpp.py holds the same number.
constexpr int API = 8;

using Address = std::uintptr_t;

// Shared parameters whose update costs about as much as a row's.
constexpr std::int64_t PARAMS_PER_ROW = 256;

Index make_index(Address address, bool is_int64, std::int64_t size, std::int64_t num_data) {
  const Index index{reinterpret_cast<const void*>(address), is_int64, size};
  std::int64_t low = 0, high = -1;
  for (std::int64_t i = 0; i < size; ++i) {
    const std::int64_t row = index[i];
    low = row < low ? row : low;
    high = row > high ? row : high;
  }
  if (low < 0 || high >= num_data) {
    throw py::index_error("index: expected row numbers from 0 to " + std::to_string(num_data - 1) +
                          ", got " + std::to_string(low < 0 ? low : high));
  }
  return index;
}

Form form_of(const std::string& name) {
  if (name == "linear") return Form::linear;
  if (name == "cluster") return Form::cluster;
  if (name == "mixture") return Form::mixture;
  throw py::value_error("form: expected one of linear, cluster, mixture, got '" + name + "'");
}

AdamMode mode_of(const std::string& name) {
  if (name == "dense") return AdamMode::dense;
  if (name == "lazy") return AdamMode::lazy;
  if (name == "row") return AdamMode::row;
  throw py::value_error("semantics: expected one of dense, lazy, row, got '" + name + "'");
}

// The enumerator of a number that rvi_fast/cpp.py has passed; they count from 0 to `last`.
template <class E>
E enumerator(const char* name, int number, E last) {
  if (number < 0 || number > (int)last) {
    throw py::value_error(std::string(name) + ": expected 0 to " + std::to_string((int)last) +
                          ", got " + std::to_string(number));
  }
  return static_cast<E>(number);
}

// A bit beyond the relays of its group would be that of another group, or of none.
void check_bits(const RowLayout& layout, const std::uint32_t* bits, std::int64_t batch) {
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    const int size = layout.groups[g], last = layout.word_offsets[g] + (size - 1) / 32;
    if (size % 32 == 0) continue;
    std::uint32_t all = 0;
    for (std::int64_t i = 0; i < batch; ++i) all |= bits[i * layout.num_words + last];
    if (all >> size % 32) {
      throw py::value_error("bits: expected none beyond the " + std::to_string(size) +
                            " relays of a group");
    }
  }
}

RowLayout make_layout(int latent_dim, std::vector<int> groups, std::vector<int> kept,
                      const std::string& form, std::vector<int> group_offsets, int deviation_offset,
                      int log_std_offset, int width) {
  RowLayout layout;
  layout.latent_dim = latent_dim;
  layout.deviation_offset = deviation_offset;
  layout.log_std_offset = log_std_offset;
  layout.width = width;
  layout.form = form_of(form);
  for (int size : groups) {
    layout.relay_offsets.push_back(layout.num_relays);
    layout.word_offsets.push_back(layout.num_words);
    layout.num_relays += size;
    layout.num_words += (size + 31) / 32;
  }
  layout.groups = std::move(groups);
  layout.kept = std::move(kept);
  layout.group_offsets = std::move(group_offsets);
  return layout;
}

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void relay_sample_fwd(const RowLayout& layout, bool is_double, int threads, Address rows,
                      std::int64_t num_data, Address relays, Address index, bool index_is_int64,
                      std::int64_t batch, Address seed, Address noise, Address noise_index,
                      bool noise_index_is_int64, std::int64_t num_samples, Address z, Address kl,
                      Address bits, Address mean) {
  RelaySampleFwd call;
  call.layout = &layout;
  call.index = make_index(index, index_is_int64, batch, num_data);
  call.rows = pointer<void>(rows);
  call.relays = pointer<void>(relays);
  call.seed = noise ? 0 : *pointer<std::uint64_t>(seed);
  call.noise = pointer<void>(noise);
  call.noise_index = {pointer<void>(noise_index), noise_index_is_int64, batch};
  call.num_samples = num_samples;
  call.z = pointer<void>(z);
  call.kl = pointer<void>(kl);
  call.bits = pointer<std::uint32_t>(bits);
  call.mean = pointer<void>(mean);
  py::gil_scoped_release release;
  kernels().relay_sample_fwd[is_double](call, threads_for(batch, threads));
}

void relay_sample_bwd(const RowLayout& layout, bool is_double, int threads, Address rows,
                      std::int64_t num_data, Address relays, Address index, bool index_is_int64,
                      std::int64_t batch, Address seed, Address noise, Address noise_index,
                      bool noise_index_is_int64, std::int64_t num_samples, Address grad_z,
                      Address grad_kl, Address bits, Address mean, bool need_rows,
                      Address grad_batch, bool need_relays, Address grad_relays) {
  RelaySampleBwd call;
  call.layout = &layout;
  call.index = make_index(index, index_is_int64, batch, num_data);
  call.rows = pointer<void>(rows);
  call.relays = pointer<void>(relays);
  call.seed = noise ? 0 : *pointer<std::uint64_t>(seed);
  call.noise = pointer<void>(noise);
  call.noise_index = {pointer<void>(noise_index), noise_index_is_int64, batch};
  call.num_samples = num_samples;
  call.grad_z = pointer<void>(grad_z);
  call.grad_kl = pointer<void>(grad_kl);
  call.bits = pointer<std::uint32_t>(bits);
  call.mean = pointer<void>(mean);
  check_bits(layout, call.bits, batch);
  call.grad_batch = need_rows ? pointer<void>(grad_batch) : nullptr;
  call.grad_relays = need_relays ? pointer<void>(grad_relays) : nullptr;
  py::gil_scoped_release release;
  kernels().relay_sample_bwd[is_double](call, threads_for(batch, threads));
}

GaussianLogLikelihood likelihood_call(std::int64_t num_samples, std::int64_t batch,
                                      std::int64_t num_features, int x_type, int scale_kind,
                                      int mask_kind, Address x, Address mean, Address scale,
                                      Address mask) {
  GaussianLogLikelihood call;
  call.num_samples = num_samples;
  call.batch = batch;
  call.num_features = num_features;
  call.x_type = enumerator("x_type", x_type, DataType::uint8);
  call.scale_kind = enumerator("scale_kind", scale_kind, ScaleKind::entry);
  call.mask_kind = enumerator("mask_kind", mask_kind, MaskKind::bits);
  call.x = pointer<void>(x);
  call.mean = pointer<void>(mean);
  call.scale = pointer<void>(scale);
  call.mask = pointer<std::uint8_t>(mask);
  return call;
}

void gaussian_log_likelihood_fwd(bool is_double, int threads, std::int64_t num_samples,
                                 std::int64_t batch, std::int64_t num_features, int x_type,
                                 int scale_kind, int mask_kind, Address x, Address mean,
                                 Address scale, Address mask, Address log_prob) {
  GaussianLogLikelihood call = likelihood_call(num_samples, batch, num_features, x_type, scale_kind,
                                               mask_kind, x, mean, scale, mask);
  call.log_prob = pointer<void>(log_prob);
  py::gil_scoped_release release;
  kernels().gaussian_log_likelihood[is_double](call, threads_for(batch, threads));
}

void gaussian_log_likelihood_bwd(bool is_double, int threads, std::int64_t num_samples,
                                 std::int64_t batch, std::int64_t num_features, int x_type,
                                 int scale_kind, int mask_kind, Address x, Address mean,
                                 Address scale, Address mask, Address grad, bool need_mean,
                                 Address grad_mean, bool need_scale, Address grad_scale) {
  GaussianLogLikelihood call = likelihood_call(num_samples, batch, num_features, x_type, scale_kind,
                                               mask_kind, x, mean, scale, mask);
  call.backward = true;
  call.grad = pointer<void>(grad);
  call.grad_mean = need_mean ? pointer<void>(grad_mean) : nullptr;
  call.grad_scale = need_scale ? pointer<void>(grad_scale) : nullptr;
  py::gil_scoped_release release;
  kernels().gaussian_log_likelihood[is_double](call, threads_for(batch, threads));
}

LinearGaussianLogLikelihood linear_call(std::int64_t num_samples, std::int64_t batch,
                                        std::int64_t num_features, int x_type, int scale_kind,
                                        int mask_kind, Address x, Address scale, Address mask,
                                        std::int64_t hidden_dim, Address hidden, Address weight,
                                        Address bias, Address log_prob) {
  LinearGaussianLogLikelihood call;
  call.likelihood = likelihood_call(num_samples, batch, num_features, x_type, scale_kind, mask_kind,
                                    x, 0, scale, mask);
  call.likelihood.log_prob = pointer<void>(log_prob);
  call.hidden_dim = hidden_dim;
  call.hidden = pointer<void>(hidden);
  call.weight = pointer<void>(weight);
  call.bias = pointer<void>(bias);
  return call;
}

// A row costs a matrix product here: one is worth a thread's start as much as many of the others.
constexpr std::int64_t LINEAR_ROW_COST = 16;

void linear_gaussian_log_likelihood_fwd(bool is_double, int threads, std::int64_t num_samples,
                                        std::int64_t batch, std::int64_t num_features, int x_type,
                                        int scale_kind, int mask_kind, Address x, Address scale,
                                        Address mask, std::int64_t hidden_dim, Address hidden,
                                        Address weight, Address bias, Address log_prob) {
  const LinearGaussianLogLikelihood call =
      linear_call(num_samples, batch, num_features, x_type, scale_kind, mask_kind, x, scale, mask,
                  hidden_dim, hidden, weight, bias, log_prob);
  py::gil_scoped_release release;
  kernels().linear_gaussian_log_likelihood[is_double](
      call, threads_for(LINEAR_ROW_COST * batch, threads));
}

void linear_gaussian_log_likelihood_bwd(bool is_double, int threads, std::int64_t num_samples,
                                        std::int64_t batch, std::int64_t num_features, int x_type,
                                        int scale_kind, int mask_kind, Address x, Address scale,
                                        Address mask, std::int64_t hidden_dim, Address hidden,
                                        Address weight, Address bias, Address log_prob,
                                        Address grad, bool need_hidden, Address grad_hidden,
                                        bool need_linear, Address grad_weight, Address grad_bias,
                                        bool need_scale, Address grad_scale) {
  LinearGaussianLogLikelihood call =
      linear_call(num_samples, batch, num_features, x_type, scale_kind, mask_kind, x, scale, mask,
                  hidden_dim, hidden, weight, bias, log_prob);
  call.likelihood.backward = true;
  call.likelihood.grad = pointer<void>(grad);
  call.likelihood.grad_scale = need_scale ? pointer<void>(grad_scale) : nullptr;
  call.grad_hidden = need_hidden ? pointer<void>(grad_hidden) : nullptr;
  call.grad_weight = need_linear ? pointer<void>(grad_weight) : nullptr;
  call.grad_bias = need_linear && bias ? pointer<void>(grad_bias) : nullptr;
  py::gil_scoped_release release;
  kernels().linear_gaussian_log_likelihood[is_double](
      call, threads_for(LINEAR_ROW_COST * batch, threads));
}

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

// A row that stands twice in a batch would be stepped twice from the gradient of one visit each.
void check_each_once(const RowAdam& call) {
  int shift = 62;  // the upper bits of a product: a table at least twice as long as the batch
  while (shift > 1 && (std::int64_t(1) << (64 - shift)) < 2 * call.index.size) --shift;
  static thread_local std::vector<std::int64_t> seen;
  seen.assign(std::size_t(1) << (64 - shift), -1);
  const std::size_t last = seen.size() - 1;
  for (std::int64_t i = 0; i < call.index.size; ++i) {
    const std::int64_t row = call.index[i];
    std::size_t at = (std::size_t)((std::uint64_t)row * 0x9E3779B97F4A7C15u >> shift);
    for (; seen[at] >= 0; at = (at + 1) & last) {
      if (seen[at] == row) {
        throw py::value_error("index: expected each row once, got row " + std::to_string(row) +
                              " twice; add its gradients up");
      }
    }
    seen[at] = row;
  }
}

RowAdam adam_call(std::int64_t num_data, std::int64_t width, Address rows, Address exp_avg,
                  Address exp_avg_sq, Address row_step, Address index, bool index_is_int64,
                  std::int64_t batch, Address clock, Address history, double beta1, double beta2,
                  double eps) {
  RowAdam call;
  call.index = make_index(index, index_is_int64, batch, num_data);
  call.num_data = num_data;
  call.width = width;
  call.rows = pointer<void>(rows);
  call.exp_avg = pointer<void>(exp_avg);
  call.exp_avg_sq = pointer<void>(exp_avg_sq);
  call.row_step = pointer<std::int32_t>(row_step);
  call.clock = pointer<std::int64_t>(clock);
  call.history = pointer<double>(history);
  call.beta1 = beta1;
  call.beta2 = beta2;
  call.eps = eps;
  return call;
}

void row_adam_catch_up(int element_type, int threads, std::int64_t num_data, std::int64_t width,
                       Address rows, Address exp_avg, Address exp_avg_sq, Address row_step,
                       Address index, bool index_is_int64, std::int64_t batch, Address clock,
                       Address history, std::int64_t history_size, double beta1, double beta2,
                       double eps) {
  const RowAdam call = adam_call(num_data, width, rows, exp_avg, exp_avg_sq, row_step, index,
                                 index_is_int64, batch, clock, history, beta1, beta2, eps);
  check_steps(call, history_size, 0);
  const int element = enumerator("element_type", element_type, 2);
  py::gil_scoped_release release;
  kernels().row_adam_catch_up[element](call, threads_for(batch, threads));
}

void row_adam_step(int element_type, int threads, std::int64_t num_data, std::int64_t width,
                   Address rows, Address exp_avg, Address exp_avg_sq, Address row_step,
                   Address index, bool index_is_int64, std::int64_t batch, Address clock,
                   Address history, std::int64_t history_size, double beta1, double beta2,
                   double eps, Address grad, Address lr, double weight_decay,
                   const std::string& semantics) {
  RowAdam call = adam_call(num_data, width, rows, exp_avg, exp_avg_sq, row_step, index,
                           index_is_int64, batch, clock, history, beta1, beta2, eps);
  call.grad = pointer<void>(grad);
  call.lr = *pointer<double>(lr);
  call.weight_decay = weight_decay;
  call.mode = mode_of(semantics);
  check_each_once(call);
  if (call.mode == AdamMode::dense) check_steps(call, history_size, 1);
  const int element = enumerator("element_type", element_type, 2);
  py::gil_scoped_release release;
  kernels().row_adam_step[element](call, threads_for(batch, threads));
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

void philox(Address counter, Address key, Address words, std::int64_t count) {
  kernels().philox(pointer<std::uint32_t>(counter), pointer<std::uint32_t>(key),
                   pointer<std::uint32_t>(words), count);
}

}  // namespace

}  // namespace rvi

PYBIND11_MODULE(_C, module) {
  using namespace rvi;
  watch_forks();
  choose_cpu_path();

  module.attr("API") = API;
  module.def("cpu_path", &cpu_path);
  module.def("cpu_paths", &cpu_paths);
  module.def("set_cpu_path", &set_cpu_path);
  py::class_<RowLayout>(module, "RowLayout").def(py::init(&make_layout));
  module.def("relay_sample_fwd", &relay_sample_fwd);
  module.def("relay_sample_bwd", &relay_sample_bwd);
  module.def("gaussian_log_likelihood_fwd", &gaussian_log_likelihood_fwd);
  module.def("gaussian_log_likelihood_bwd", &gaussian_log_likelihood_bwd);
  module.def("linear_gaussian_log_likelihood_fwd", &linear_gaussian_log_likelihood_fwd);
  module.def("linear_gaussian_log_likelihood_bwd", &linear_gaussian_log_likelihood_bwd);
  module.def("row_adam_catch_up", &row_adam_catch_up);
  module.def("row_adam_step", &row_adam_step);
  module.def("adam_step", &adam_step);
  module.def("philox", &philox);
}
