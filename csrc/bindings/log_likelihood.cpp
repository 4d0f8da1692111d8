#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>

#include "bindings/bindings.h"
#include "calls.h"
#include "dispatch.h"
#include "parallel.h"

namespace rvi {
namespace {

// x has the element type of a kernel for double, and no kernel for float is given that.
bool is_double(DataType x_type) { return x_type == DataType::float64; }

LogLikelihood likelihood_call(std::int64_t num_samples, std::int64_t batch,
                              std::int64_t num_features, std::string_view law, DataType x_type,
                              ScaleKind scale_kind, MaskKind mask_kind, Address x, Address output,
                              Address scale, Address mask) {
  LogLikelihood call;
  call.num_samples = num_samples;
  call.batch = batch;
  call.num_features = num_features;
  call.law = law_of(law);
  call.x_type = x_type;
  call.scale_kind = scale_kind;
  call.mask_kind = mask_kind;
  call.x = pointer<void>(x);
  call.output = pointer<void>(output);
  call.scale = pointer<void>(scale);
  call.mask = pointer<std::uint8_t>(mask);
  return call;
}

void log_likelihood_fwd(int threads, std::int64_t num_samples, std::int64_t batch,
                        std::int64_t num_features, std::string_view law, DataType x_type,
                        ScaleKind scale_kind, MaskKind mask_kind, Address x, Address output,
                        Address scale, Address mask, Address log_prob) {
  LogLikelihood call = likelihood_call(num_samples, batch, num_features, law, x_type, scale_kind,
                                       mask_kind, x, output, scale, mask);
  call.log_prob = pointer<void>(log_prob);
  py::gil_scoped_release release;
  kernels().log_likelihood[is_double(x_type)](call, threads_for(batch, threads));
}

void log_likelihood_bwd(int threads, std::int64_t num_samples, std::int64_t batch,
                        std::int64_t num_features, std::string_view law, DataType x_type,
                        ScaleKind scale_kind, MaskKind mask_kind, Address x, Address output,
                        Address scale, Address mask, Address grad, Address grad_output,
                        Address grad_scale) {
  LogLikelihood call = likelihood_call(num_samples, batch, num_features, law, x_type, scale_kind,
                                       mask_kind, x, output, scale, mask);
  call.backward = true;
  call.grad = pointer<void>(grad);
  call.grad_output = pointer<void>(grad_output);
  call.grad_scale = pointer<void>(grad_scale);
  py::gil_scoped_release release;
  kernels().log_likelihood[is_double(x_type)](call, threads_for(batch, threads));
}

LinearLogLikelihood linear_call(std::int64_t num_samples, std::int64_t batch,
                                std::int64_t num_features, std::string_view law, DataType x_type,
                                ScaleKind scale_kind, MaskKind mask_kind, Address x, Address scale,
                                Address mask, std::int64_t hidden_dim, Address hidden,
                                Address weight, Address bias, Address log_prob) {
  LinearLogLikelihood call;
  call.likelihood = likelihood_call(num_samples, batch, num_features, law, x_type, scale_kind,
                                    mask_kind, x, 0, scale, mask);
  call.likelihood.log_prob = pointer<void>(log_prob);
  call.hidden_dim = hidden_dim;
  call.hidden = pointer<void>(hidden);
  call.weight = pointer<void>(weight);
  call.bias = pointer<void>(bias);
  return call;
}

// A row costs a matrix product here: one is worth a thread's start as much as many of the others.
constexpr std::int64_t LINEAR_ROW_COST = 16;

void linear_log_likelihood_fwd(int threads, std::int64_t num_samples, std::int64_t batch,
                               std::int64_t num_features, std::string_view law, DataType x_type,
                               ScaleKind scale_kind, MaskKind mask_kind, Address x, Address scale,
                               Address mask, std::int64_t hidden_dim, Address hidden,
                               Address weight, Address bias, Address log_prob) {
  const LinearLogLikelihood call =
      linear_call(num_samples, batch, num_features, law, x_type, scale_kind, mask_kind, x, scale,
                  mask, hidden_dim, hidden, weight, bias, log_prob);
  py::gil_scoped_release release;
  kernels().linear_log_likelihood[is_double(x_type)](call,
                                                     threads_for(LINEAR_ROW_COST * batch, threads));
}

void linear_log_likelihood_bwd(int threads, std::int64_t num_samples, std::int64_t batch,
                               std::int64_t num_features, std::string_view law, DataType x_type,
                               ScaleKind scale_kind, MaskKind mask_kind, Address x, Address scale,
                               Address mask, std::int64_t hidden_dim, Address hidden,
                               Address weight, Address bias, Address log_prob, Address grad,
                               Address grad_hidden, Address grad_weight, Address grad_bias,
                               Address grad_scale) {
  LinearLogLikelihood call =
      linear_call(num_samples, batch, num_features, law, x_type, scale_kind, mask_kind, x, scale,
                  mask, hidden_dim, hidden, weight, bias, log_prob);
  call.likelihood.backward = true;
  call.likelihood.grad = pointer<void>(grad);
  call.likelihood.grad_scale = pointer<void>(grad_scale);
  call.grad_hidden = pointer<void>(grad_hidden);
  call.grad_weight = pointer<void>(grad_weight);
  call.grad_bias = pointer<void>(grad_bias);
  py::gil_scoped_release release;
  kernels().linear_log_likelihood[is_double(x_type)](call,
                                                     threads_for(LINEAR_ROW_COST * batch, threads));
}

}  // namespace

void bind_log_likelihood(py::module_& module) {
  py::list laws;
  for (const char* const* name = kernels().laws; *name; ++name) laws.append(*name);
  module.attr("LAWS") = py::tuple(laws);
  bind_enum<DataType>(module, "DataType", "The element type of x.",
                      {{"float32", DataType::float32},
                       {"float64", DataType::float64},
                       {"float16", DataType::float16},
                       {"bfloat16", DataType::bfloat16},
                       {"uint8", DataType::uint8}});
  bind_enum<ScaleKind>(module, "ScaleKind", "One scale, one for each feature, one for each entry.",
                       {{"scalar", ScaleKind::scalar},
                        {"feature", ScaleKind::feature},
                        {"entry", ScaleKind::entry}});
  bind_enum<MaskKind>(
      module, "MaskKind",
      "What is observed: all but NaN, a byte for each entry, a bit in words of 32.",
      {{"none", MaskKind::none}, {"bytes", MaskKind::bytes}, {"bits", MaskKind::bits}});
  bind<&log_likelihood_fwd>(module, "log_likelihood_fwd",
                            "rvi_fast.reference.log_likelihood_fwd. Reads x [B, D], output [S, B, "
                            "D], mask of its kind, and\n"
                            "scale of its kind, 0 for a law that has none. Writes log_prob [S, B].",
                            "threads", "num_samples", "batch", "num_features", "law", "x_type",
                            "scale_kind", "mask_kind", "x", "output", "scale", "mask", "log_prob");
  bind<&log_likelihood_bwd>(
      module, "log_likelihood_bwd",
      "rvi_fast.reference.log_likelihood_bwd. Reads what log_likelihood_fwd has read, and grad\n"
      "[S, B]. Writes grad_output [S, B, D] and grad_scale, as the scale; each 0 where it is not\n"
      "wanted.",
      "threads", "num_samples", "batch", "num_features", "law", "x_type", "scale_kind", "mask_kind",
      "x", "output", "scale", "mask", "grad", "grad_output", "grad_scale");
  bind<&linear_log_likelihood_fwd>(
      module, "linear_log_likelihood_fwd",
      "rvi_fast.reference.linear_log_likelihood_fwd. Reads hidden [S, B, H], weight [D, "
      "H],\n"
      "bias [D] or 0, x [B, D], scale and mask of the kinds named. Writes log_prob [S, B].",
      "threads", "num_samples", "batch", "num_features", "law", "x_type", "scale_kind", "mask_kind",
      "x", "scale", "mask", "hidden_dim", "hidden", "weight", "bias", "log_prob");
  bind<&linear_log_likelihood_bwd>(
      module, "linear_log_likelihood_bwd",
      "rvi_fast.reference.linear_log_likelihood_bwd. Reads what the forward has read, "
      "and\n"
      "grad [S, B]. Writes log_prob [S, B], grad_hidden [S, B, H], grad_weight [D, H], grad_bias "
      "[D]\n"
      "and grad_scale, as the scale; each gradient 0 where it is not wanted.",
      "threads", "num_samples", "batch", "num_features", "law", "x_type", "scale_kind", "mask_kind",
      "x", "scale", "mask", "hidden_dim", "hidden", "weight", "bias", "log_prob", "grad",
      "grad_hidden", "grad_weight", "grad_bias", "grad_scale");
}

}  // namespace rvi
