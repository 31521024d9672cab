// The calls of jat_engine._cpu that have something to check: they refuse wrong arguments with ValueError,
// release the GIL while they compute, and count their time in `Model::seconds`.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../encoders.h"
#include "../linear.h"
#include "../model.h"

namespace jat::bindings {

template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

double measure_bandwidth(size_t num_bytes, int num_threads, int repeats);
double measure_dot_peak(const std::string& dtype, int num_threads, int repeats,
                        const std::string& instruction_set);

// ---- linear layers

std::shared_ptr<Linear> make_linear(const std::string& dtype, int rows, int columns, bool has_bias);
void pack_rows(Linear& linear, int first, const Array<float>& weight);
void pack_bytes(Linear& linear, int first, const Array<int8_t>& codes, const Array<float>& row_scales);
void pack_codes(Linear& linear, int first, const Array<uint8_t>& codes, const Array<uint8_t>& scales,
                const Array<uint8_t>& minima, const Array<float>& row_scales);
// weight [rows, columns] -> codes [rows, columns], scales and minima [rows, groups], row_scales [rows].
pybind11::tuple round_weights_int4(const Array<float>& weight);
// weight [rows, up to 32], row_scales [rows] -> scales and minima [rows].
pybind11::tuple fit_groups_int4(const Array<float>& weight, const Array<float>& row_scales);
void set_bias(Linear& linear, const Array<float>& bias);

// ---- the transformer

std::unique_ptr<Model> make_model(int hidden_size, int num_heads, const std::string& kv_dtype,
                                  const Array<float>& position_table, int num_threads, int spin_us,
                                  const std::string& instruction_set);
void add_layer(Model& model, const Array<float>& norm1_weight, const Array<float>& norm1_bias,
               std::shared_ptr<Linear> qkv, std::shared_ptr<Linear> out_proj,
               const Array<float>& norm2_weight, const Array<float>& norm2_bias,
               std::shared_ptr<Linear> mlp_in, std::shared_ptr<Linear> mlp_out, int window);
void set_final_norm(Model& model, const Array<float>& weight, const Array<float>& bias);

// For each session (prediction [rows of its head], whether all of it is finite).
pybind11::list decode(Model& model, const std::vector<Array<float>>& embeddings,
                      const std::vector<int32_t>& num_new, const std::vector<int32_t>& context_lens,
                      const std::vector<int32_t>& start_offsets,
                      const std::vector<Array<int32_t>>& page_tables, Array<uint8_t>& pool,
                      const std::vector<const Linear*>& heads);

// The logits [tokens predicted after, rows of the head], token by token of each text.
pybind11::array decode_text(Model& model, const std::vector<Array<float>>& embeddings,
                            const std::vector<int32_t>& num_new, const std::vector<int32_t>& context_lens,
                            const std::vector<Array<int32_t>>& page_tables, Array<uint8_t>& pool,
                            const std::vector<int32_t>& num_predicted, const Linear& head);

// x [T, columns of the layer] -> [T, rows].
pybind11::array apply(Model& model, const Linear& linear, const Array<float>& x);

// The embedding of `values`, followed by `last` unless that is NaN.
Array<float> embed(Model& model, const Linear& linear, const Array<float>& values, float last);

// ---- encoders

std::unique_ptr<DiscreteEncoder> make_discrete_encoder(const Array<float>& features,
                                                       std::shared_ptr<Linear> linear);
pybind11::list encode_integers(DiscreteEncoder& encoder, Model& model,
                               const std::vector<Array<int64_t>>& values,
                               const std::vector<std::optional<Array<int64_t>>>& missions,
                               const std::vector<float>& rewards);
void add_stage(ImageEncoder& encoder, int in_size, const Array<float>& weight, const Array<float>& gate_in,
               const Array<float>& gate_out);
void set_linear(ImageEncoder& encoder, std::shared_ptr<Linear> linear);
pybind11::list encode_frames(ImageEncoder& encoder, Model& model, const std::vector<Array<uint8_t>>& frames);

}  // namespace jat::bindings
