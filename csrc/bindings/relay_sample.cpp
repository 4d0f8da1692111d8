#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "calls.h"
#include "dispatch.h"
#include "parallel.h"

namespace rvi {
namespace {

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

RowLayout make_layout(int latent_dim, std::vector<int> groups, std::vector<int> kept, Form form,
                      std::vector<int> group_offsets, int deviation_offset, int log_std_offset,
                      int width) {
  RowLayout layout;
  layout.latent_dim = latent_dim;
  layout.deviation_offset = deviation_offset;
  layout.log_std_offset = log_std_offset;
  layout.width = width;
  layout.form = form;
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

void check_and_read(RelaySample& call, const RowLayout& layout, Address rows, std::int64_t num_data,
                    Address relays, const Index& index, Address seed, Address noise,
                    const Index& noise_index, std::int64_t num_samples) {
  check_index(index, num_data);
  call.layout = &layout;
  call.index = index;
  call.rows = pointer<void>(rows);
  call.relays = pointer<void>(relays);
  call.seed = noise ? 0 : *pointer<std::uint64_t>(seed);
  call.noise = pointer<void>(noise);
  call.noise_index = noise_index;
  call.num_samples = num_samples;
}

void relay_sample_fwd(const RowLayout& layout, bool is_double, int threads, Address rows,
                      std::int64_t num_data, Address relays, const Index& index, Address seed,
                      Address noise, const Index& noise_index, std::int64_t num_samples, Address z,
                      Address kl, Address bits, Address mean) {
  RelaySampleFwd call;
  check_and_read(call, layout, rows, num_data, relays, index, seed, noise, noise_index,
                 num_samples);
  call.z = pointer<void>(z);
  call.kl = pointer<void>(kl);
  call.bits = pointer<std::uint32_t>(bits);
  call.mean = pointer<void>(mean);
  py::gil_scoped_release release;
  kernels().relay_sample_fwd[is_double](call, threads_for(index.size, threads));
}

void relay_sample_bwd(const RowLayout& layout, bool is_double, int threads, Address rows,
                      std::int64_t num_data, Address relays, const Index& index, Address seed,
                      Address noise, const Index& noise_index, std::int64_t num_samples,
                      Address grad_z, Address grad_kl, Address bits, Address mean,
                      Address grad_batch, Address grad_relays) {
  RelaySampleBwd call;
  check_and_read(call, layout, rows, num_data, relays, index, seed, noise, noise_index,
                 num_samples);
  call.grad_z = pointer<void>(grad_z);
  call.grad_kl = pointer<void>(grad_kl);
  call.bits = pointer<std::uint32_t>(bits);
  call.mean = pointer<void>(mean);
  check_bits(layout, call.bits, index.size);
  call.grad_batch = pointer<void>(grad_batch);
  call.grad_relays = pointer<void>(grad_relays);
  py::gil_scoped_release release;
  kernels().relay_sample_bwd[is_double](call, threads_for(index.size, threads));
}

void philox(Address counter, Address key, Address words, std::int64_t count) {
  kernels().philox(pointer<std::uint32_t>(counter), pointer<std::uint32_t>(key),
                   pointer<std::uint32_t>(words), count);
}

}  // namespace

void bind_relay_sample(py::module_& module) {
  bind_enum<Form>(
      module, "Form", "How the relay vectors of a group make a mean.",
      {{"linear", Form::linear}, {"cluster", Form::cluster}, {"mixture", Form::mixture}});
  bind_init<RowLayout, &make_layout>(
      module, "RowLayout", "Where the parts of a packed row lie: rvi_fast.layout.RowLayout.",
      "latent_dim", "groups", "kept", "form", "group_offsets", "deviation_offset", "log_std_offset",
      "width");
  bind<&relay_sample_fwd>(
      module, "relay_sample_fwd",
      "rvi_fast.reference.relay_sample_fwd. Reads rows [num_data, W], relays [K, T], seed [1] "
      "int64\n"
      "and noise [S, B, T], 0 where it is drawn; noise_index keys what is drawn. Writes z [S, B, "
      "T],\n"
      "kl [B], bits [B, words] int32 and mean [B, T]. IndexError where a row number is not of the\n"
      "table.",
      "layout", "is_double", "threads", "rows", "num_data", "relays", "index", "seed", "noise",
      "noise_index", "num_samples", "z", "kl", "bits", "mean");
  bind<&relay_sample_bwd>(
      module, "relay_sample_bwd",
      "rvi_fast.reference.relay_sample_bwd. Reads what relay_sample_fwd has read, the bits and "
      "mean\n"
      "that it has written, grad_z [S, B, T] and grad_kl [B]. Writes grad_batch [B, W] and\n"
      "grad_relays [K, T], each 0 where it is not wanted. ValueError where a bit is beyond the "
      "relays\n"
      "of its group.",
      "layout", "is_double", "threads", "rows", "num_data", "relays", "index", "seed", "noise",
      "noise_index", "num_samples", "grad_z", "grad_kl", "bits", "mean", "grad_batch",
      "grad_relays");
  bind<&philox>(module, "philox",
                "The words of Philox 4x32-10 for counter [count, 4] and key [2], [count, 4] int32.",
                "counter", "key", "words", "count");
}

}  // namespace rvi
