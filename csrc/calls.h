// What one call of a kernel is given: where the parts of a packed row lie, and the tensors.
//
// Sizes: N rows in the table, B in the batch, K relay vectors, T latent dimensions,
// G groups, S samples, D features, W elements in a row. Tensors are contiguous; nothing here is
// checked, the caller has done that.

#pragma once

#include <cstdint>
#include <vector>

namespace rvi {

enum class Form { linear, cluster, mixture };

// rvi_fast.layout.RowLayout
struct RowLayout {
  int latent_dim = 0;        // T
  int num_relays = 0;        // K
  int num_words = 0;         // 32-bit words of kept bits in a row
  int deviation_offset = 0;  // also the width of all coefficients
  int log_std_offset = 0;
  int width = 0;  // W
  Form form = Form::linear;
  std::vector<int> groups;         // K_g
  std::vector<int> kept;           // m_g
  std::vector<int> group_offsets;  // first coefficient of a group in a row
  std::vector<int> relay_offsets;  // first relay vector of a group
  std::vector<int> word_offsets;   // first word of kept bits of a group
};

// Row numbers, int32 or int64.
struct Index {
  const void* data = nullptr;
  bool is_int64 = true;
  std::int64_t size = 0;  // B

  std::int64_t operator[](std::int64_t i) const {
    return is_int64 ? static_cast<const std::int64_t*>(data)[i]
                    : static_cast<const std::int32_t*>(data)[i];
  }
};

// Element type F (float or double) of the tables is known to the kernel.

// What both directions read.
struct RelaySample {
  const RowLayout* layout;
  Index index;
  const void* rows;    // [N, W]
  const void* relays;  // [K, T]
  std::uint64_t seed;
  const void* noise;         // [S, B, T] or null
  Index noise_index;         // what keys drawn noise
  std::int64_t num_samples;  // S
};

struct RelaySampleFwd : RelaySample {
  void* z;              // [S, B, T]
  void* kl;             // [B]
  std::uint32_t* bits;  // [B, words]
  void* mean;           // [B, T]
};

struct RelaySampleBwd : RelaySample {
  const void* grad_z;         // [S, B, T]
  const void* grad_kl;        // [B]
  const std::uint32_t* bits;  // [B, words]
  const void* mean;           // [B, T]
  void* grad_batch;           // [B, W] or null
  void* grad_relays;          // [K, T] or null
};

enum class DataType { float32, float64, float16, bfloat16, uint8 };

enum class ScaleKind { scalar, feature, entry };

// NaN in x marks what is missing; a byte for each entry; a bit for each, in words of 32.
enum class MaskKind { none, bytes, bits };

// output and scale have the kernel's element type; x has it too, or float16, bfloat16 or uint8 with
// a kernel for float.
struct LogLikelihood {
  std::int64_t num_samples;   // S
  std::int64_t batch;         // B
  std::int64_t num_features;  // D
  int law;                    // its place in `Laws`, see laws.h
  DataType x_type;
  ScaleKind scale_kind;
  MaskKind mask_kind;
  const void* x;             // [B, D]
  const void* output;        // of the decoder: the mean [S, B, D]
  const void* scale;         // 1, [D] or [B, D]
  const std::uint8_t* mask;  // [B, D], [B, ceil(D / 32)] words, or null
  bool backward = false;
  void* log_prob = nullptr;     // [S, B]: forward
  const void* grad = nullptr;   // [S, B]: backward
  void* grad_output = nullptr;  // [S, B, D] or null
  void* grad_scale = nullptr;   // shape of scale, or null
};

// The same with output = hidden W^T + bias, which is not written: `likelihood.output` and
// `.grad_output` stay null, and its `log_prob` is written in both directions.
struct LinearLogLikelihood {
  LogLikelihood likelihood;
  std::int64_t hidden_dim;      // H
  const void* hidden;           // [S, B, H]
  const void* weight;           // [D, H]
  const void* bias;             // [D] or null
  void* grad_hidden = nullptr;  // [S, B, H] or null: backward
  void* grad_weight = nullptr;  // [D, H] or null
  void* grad_bias = nullptr;    // [D] or null
};

enum class AdamMode { dense, lazy, row };

// Of the rows, and of the moments where that is another.
enum class RowTypes { float32, float64, float32_bfloat16 };

struct RowAdam {
  Index index;
  Index key_index;         // what keys the random bits of the moments, of each place in the index
  std::int64_t num_data;   // N
  std::int64_t width;      // W
  void* rows;              // [N, W]
  void* exp_avg;           // [N, W], as the rows or bfloat16
  void* exp_avg_sq;        // [N, W], likewise
  std::int32_t* row_step;  // [N]
  std::int64_t* clock;     // [2]
  double* history;         // [steps, 16]
  double beta1;
  double beta2;
  double eps;
  const void* grad = nullptr;  // [B, W]: step
  double lr = 0.0;
  double weight_decay = 0.0;
  AdamMode mode = AdamMode::dense;
};

struct AdamStep {
  std::int64_t size;       // P
  std::int64_t num_parts;  // of the gradient
  void* params;            // [P]
  void* exp_avg;           // [P]
  void* exp_avg_sq;        // [P]
  const void* grads;       // [num_parts, P]
  std::int64_t* step;      // [1]
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
};

}  // namespace rvi
