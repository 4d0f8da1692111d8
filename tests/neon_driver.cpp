// Runs one function of an op on the path "neon", for tests/test_neon.py: neon_driver FUNCTION FROM
// TO.
//
// FROM is a file of the function's arguments and of room for its results, each a line "name dtype
// bytes dimensions ..." and its bytes; TO gets the bytes of all of them, in order, after the call.
// Each ends where a page begins that may not be touched.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "calls.h"
#include "dispatch.h"

namespace rvi {

// dispatch.cpp lists it; not compiled here, and not to be chosen
extern const Kernels portable_kernels;
const Kernels portable_kernels = {};

namespace {

struct Field {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::size_t bytes = 0;
  char* data = nullptr;
};

struct Fields {
  std::map<std::string, Field> named;
  std::vector<std::string> order;

  bool has(const std::string& name) const { return named.count(name) > 0; }
  const Field& at(const std::string& name) const {
    const auto found = named.find(name);
    if (found == named.end()) throw std::runtime_error(name + ": expected this argument, got none");
    return found->second;
  }
  template <class T>
  T* pointer(const std::string& name) const {
    return has(name) && at(name).bytes ? reinterpret_cast<T*>(at(name).data) : nullptr;
  }
  template <class T>
  T value(const std::string& name) const {
    T result;
    if (at(name).bytes != sizeof(T)) throw std::runtime_error(name + ": another type");
    std::memcpy(&result, at(name).data, sizeof(T));
    return result;
  }
  std::int64_t size(const std::string& name, int dimension) const {
    return at(name).shape.at(dimension);
  }
  std::string text(const std::string& name) const { return {at(name).data, at(name).bytes}; }
  std::vector<int> list(const std::string& name) const {
    const int* values = pointer<int>(name);
    return {values, values + at(name).bytes / sizeof(int)};
  }
  Index index(const std::string& name) const {
    return {pointer<void>(name), at(name).dtype == "int64", size(name, 0)};
  }
};

// Memory whose end is that of a page, with the next one out of reach.
char* guarded(std::size_t bytes) {
  const std::size_t page = (std::size_t)sysconf(_SC_PAGESIZE);
  const std::size_t room = (bytes + page - 1) / page * page;
  void* memory =
      mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(memory);
  if (mprotect(begin + room, page, PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
  return begin + room - bytes;
}

Fields read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  Fields fields;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    Field field;
    words >> name >> field.dtype >> field.bytes;
    for (std::int64_t size; words >> size;) field.shape.push_back(size);
    field.data = guarded(field.bytes);
    if (!file.read(field.data, (std::streamsize)field.bytes)) throw std::runtime_error(name);
    fields.named[name] = field;
    fields.order.push_back(name);
  }
  return fields;
}

RowLayout layout_of(const Fields& in) {
  RowLayout layout;
  layout.latent_dim = (int)in.size("relays", 1);
  layout.form =
      std::map<std::string, Form>{
          {"linear", Form::linear}, {"cluster", Form::cluster}, {"mixture", Form::mixture}}
          .at(in.text("form"));
  layout.groups = in.list("groups");
  layout.kept = in.list("kept");
  layout.group_offsets = in.list("group_offsets");
  layout.deviation_offset = (int)in.value<std::int64_t>("deviation_offset");
  layout.log_std_offset = (int)in.value<std::int64_t>("log_std_offset");
  layout.width = (int)in.size("rows", 1);
  for (int size : layout.groups) {
    layout.relay_offsets.push_back(layout.num_relays);
    layout.word_offsets.push_back(layout.num_words);
    layout.num_relays += size;
    layout.num_words += (size + 31) / 32;
  }
  return layout;
}

template <class Call>
Call relay_call(const Fields& in, const RowLayout& layout) {
  Call call;
  call.layout = &layout;
  call.index = in.index("index");
  call.noise_index = in.has("noise_index") ? in.index("noise_index") : call.index;
  call.rows = in.pointer<void>("rows");
  call.relays = in.pointer<void>("relays");
  call.seed = in.value<std::uint64_t>("seed");
  call.noise = in.pointer<void>("noise");
  call.bits = in.pointer<std::uint32_t>("bits");
  call.mean = in.pointer<void>("mean");
  return call;
}

void relay_sample_fwd(const Fields& in) {
  const RowLayout layout = layout_of(in);
  RelaySampleFwd call = relay_call<RelaySampleFwd>(in, layout);
  call.num_samples = in.value<std::int64_t>("num_samples");
  call.z = in.pointer<void>("z");
  call.kl = in.pointer<void>("kl");
  kernels().relay_sample_fwd[in.at("rows").dtype == "float64"](call, 1);
}

void relay_sample_bwd(const Fields& in) {
  const RowLayout layout = layout_of(in);
  RelaySampleBwd call = relay_call<RelaySampleBwd>(in, layout);
  call.num_samples = in.size("grad_z", 0);
  call.grad_z = in.pointer<void>("grad_z");
  call.grad_kl = in.pointer<void>("grad_kl");
  call.grad_batch = in.pointer<void>("grad_rows");
  call.grad_relays = in.pointer<void>("grad_relays");
  kernels().relay_sample_bwd[in.at("rows").dtype == "float64"](call, 1);
}

LogLikelihood likelihood_call(const Fields& in) {
  LogLikelihood call;
  call.batch = in.size("x", 0);
  call.num_features = in.size("x", 1);
  call.x_type = std::map<std::string, DataType>{{"float32", DataType::float32},
                                                {"float64", DataType::float64},
                                                {"float16", DataType::float16},
                                                {"bfloat16", DataType::bfloat16},
                                                {"uint8", DataType::uint8}}
                    .at(in.at("x").dtype);
  call.law = law_of(in.text("law"));
  const std::size_t dimensions = in.has("scale") ? in.at("scale").shape.size() : 0;
  call.scale_kind = dimensions == 2 ? ScaleKind::entry : ScaleKind::feature;
  if (dimensions == 0 || in.size("scale", 0) == 1) call.scale_kind = ScaleKind::scalar;
  call.mask_kind = MaskKind::none;
  if (in.has("mask")) {
    call.mask_kind = in.at("mask").dtype == "bool" ? MaskKind::bytes : MaskKind::bits;
  }
  call.x = in.pointer<void>("x");
  call.output = in.pointer<void>("output");
  call.scale = in.pointer<void>("scale");
  call.mask = in.pointer<std::uint8_t>("mask");
  call.backward = in.has("grad_log_prob");
  call.log_prob = in.pointer<void>("log_prob");
  call.grad = in.pointer<void>("grad_log_prob");
  call.grad_output = in.pointer<void>("grad_output");
  call.grad_scale = in.pointer<void>("grad_scale");
  return call;
}

void log_likelihood(const Fields& in) {
  LogLikelihood call = likelihood_call(in);
  call.num_samples = in.size("output", 0);
  kernels().log_likelihood[in.at("output").dtype == "float64"](call, 1);
}

void linear_log_likelihood(const Fields& in) {
  LinearLogLikelihood call;
  call.likelihood = likelihood_call(in);
  call.likelihood.num_samples = in.size("hidden", 0);
  call.hidden_dim = in.size("hidden", 2);
  call.hidden = in.pointer<void>("hidden");
  call.weight = in.pointer<void>("weight");
  call.bias = in.pointer<void>("bias");
  call.grad_hidden = in.pointer<void>("grad_hidden");
  call.grad_weight = in.pointer<void>("grad_weight");
  call.grad_bias = in.pointer<void>("grad_bias");
  kernels().linear_log_likelihood[in.at("hidden").dtype == "float64"](call, 1);
}

RowAdam row_adam_call(const Fields& in) {
  RowAdam call;
  call.index = in.index("index");
  call.key_index = in.has("key_index") ? in.index("key_index") : call.index;
  call.num_data = in.size("rows", 0);
  call.width = in.size("rows", 1);
  call.rows = in.pointer<void>("rows");
  call.exp_avg = in.pointer<void>("exp_avg");
  call.exp_avg_sq = in.pointer<void>("exp_avg_sq");
  call.row_step = in.pointer<std::int32_t>("row_step");
  call.clock = in.pointer<std::int64_t>("clock");
  call.history = in.pointer<double>("history");
  call.beta1 = in.value<double>("beta1");
  call.beta2 = in.value<double>("beta2");
  call.eps = in.value<double>("eps");
  return call;
}

int row_types(const Fields& in) {
  if (in.at("exp_avg").dtype == "bfloat16") return (int)RowTypes::float32_bfloat16;
  return (int)(in.at("rows").dtype == "float64" ? RowTypes::float64 : RowTypes::float32);
}

void row_adam_catch_up(const Fields& in) {
  kernels().row_adam_catch_up[row_types(in)](row_adam_call(in), 1);
}

void row_adam_step(const Fields& in) {
  RowAdam call = row_adam_call(in);
  call.grad = in.pointer<void>("grad");
  call.lr = in.value<double>("lr");
  call.weight_decay = in.value<double>("weight_decay");
  call.mode =
      std::map<std::string, AdamMode>{
          {"dense", AdamMode::dense}, {"lazy", AdamMode::lazy}, {"row", AdamMode::row}}
          .at(in.text("semantics"));
  kernels().row_adam_step[row_types(in)](call, 1);
}

void adam_step(const Fields& in) {
  AdamStep call;
  call.size = in.size("grads", 1);
  call.num_parts = in.size("grads", 0);
  call.params = in.pointer<void>("params");
  call.exp_avg = in.pointer<void>("exp_avg");
  call.exp_avg_sq = in.pointer<void>("exp_avg_sq");
  call.grads = in.pointer<void>("grads");
  call.step = in.pointer<std::int64_t>("step");
  call.lr = in.value<double>("lr");
  call.beta1 = in.value<double>("beta1");
  call.beta2 = in.value<double>("beta2");
  call.eps = in.value<double>("eps");
  call.weight_decay = in.value<double>("weight_decay");
  kernels().adam_step[in.at("params").dtype == "float64"](call, 1);
}

void run(const std::string& function, const char* from, const char* to) {
  choose_cpu_path();
  if (cpu_path() != "neon") throw std::runtime_error("expected neon, got " + cpu_path());
  const Fields fields = read(from);
  std::map<std::string, void (*)(const Fields&)>{
      {"relay_sample_fwd", relay_sample_fwd},
      {"relay_sample_bwd", relay_sample_bwd},
      {"log_likelihood_fwd", log_likelihood},
      {"log_likelihood_bwd", log_likelihood},
      {"linear_log_likelihood_fwd", linear_log_likelihood},
      {"linear_log_likelihood_bwd", linear_log_likelihood},
      {"row_adam_catch_up", row_adam_catch_up},
      {"row_adam_step", row_adam_step},
      {"adam_step", adam_step}}
      .at(function)(fields);
  std::ofstream file(to, std::ios::binary);
  for (const std::string& name : fields.order) {
    file.write(fields.at(name).data, (std::streamsize)fields.at(name).bytes);
  }
  if (!file.flush()) throw std::runtime_error("the results could not be written");
}

}  // namespace
}  // namespace rvi

int main(int count, char** arguments) {
  try {
    if (count != 4) throw std::runtime_error("expected FUNCTION FROM TO");
    rvi::run(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
