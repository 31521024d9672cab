#include "calls.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "../bandwidth.h"
#include "../dot_peak.h"
#include "checks.h"

namespace py = pybind11;

namespace jat::bindings {

namespace {

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

template <typename T>
void expect_size(const char* name, const Array<T>& array, int64_t size) {
  expect(array.size() == size, name, ": expected ", size, " numbers, got ", array.size());
}

void expect_shape(const char* name, const std::shared_ptr<Linear>& linear, int rows, int columns) {
  expect(linear != nullptr, name, ": expected a Linear, got None");
  expect(linear->rows() == rows && linear->columns() == columns, name, ": expected [", rows, ", ", columns,
         "], got [", linear->rows(), ", ", linear->columns(), "]");
}

void expect_complete(const Model& model) {
  expect(model.is_complete(), "model: expected set_final_norm to have been called");
}

DType to_dtype(const char* name, const std::string& dtype) {
  if (dtype == "float32") return DType::kFloat32;
  if (dtype == "bfloat16") return DType::kBFloat16;
  if (dtype == "int8") return DType::kInt8;
  expect(dtype == "int4", name, ": expected float32, bfloat16, int8 or int4, got ", dtype);
  return DType::kInt4;
}

// [N, padded_rows] -> N arrays [padded_rows], which keep the memory alive.
py::list rows_of(const Array<float>& array) {
  py::list rows(array.shape(0));
  for (py::ssize_t i = 0; i < array.shape(0); ++i)
    rows[i] = py::array(py::dtype::of<float>(), {array.shape(1)}, array.data(i), array);
  return rows;
}

Array<float> empty_rows(size_t count, int padded_rows) {
  return Array<float>({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(padded_rows)});
}

// A view [N, rows] of a layer's results [N, padded_rows].
py::array without_padding(const Array<float>& out, const Linear& linear) {
  const auto bytes = static_cast<py::ssize_t>(sizeof(float));
  return {py::dtype::of<float>(),
          {out.shape(0), static_cast<py::ssize_t>(linear.rows())},
          {out.shape(1) * bytes, bytes},
          out.data(),
          out};
}

}  // namespace

double measure_bandwidth(size_t num_bytes, int num_threads, int repeats) {
  expect(num_threads >= 1, "num_threads: expected at least 1, got ", num_threads);
  expect(repeats >= 1, "repeats: expected at least 1, got ", repeats);
  const py::gil_scoped_release release;
  return read_bandwidth(num_bytes, num_threads, repeats);
}

double measure_dot_peak(const std::string& dtype, int num_threads, int repeats,
                        const std::string& instruction_set) {
  expect(num_threads >= 1, "num_threads: expected at least 1, got ", num_threads);
  expect(repeats >= 1, "repeats: expected at least 1, got ", repeats);
  const DType type = to_dtype("dtype", dtype);
  const py::gil_scoped_release release;
  return dot_peak(type, num_threads, repeats, instruction_set);
}

// ---- linear layers

std::shared_ptr<Linear> make_linear(const std::string& dtype, int rows, int columns, bool has_bias) {
  expect(rows >= 1 && columns >= 1, "rows, columns: expected at least 1, got ", rows, " and ", columns);
  return std::make_shared<Linear>(to_dtype("dtype", dtype), rows, columns, has_bias);
}

void pack_rows(Linear& linear, int first, const Array<float>& weight) {
  expect(weight.ndim() == 2 && weight.shape(1) == linear.columns(), "weight: expected [count, ",
         linear.columns(), "], got ", weight.ndim(), " dimensions and ", weight.size(), " numbers");
  expect(first >= 0 && first + weight.shape(0) <= linear.rows(), "weight: expected rows within the layer's ",
         linear.rows(), ", got ", weight.shape(0), " from ", first, " on");
  const py::gil_scoped_release release;
  linear.pack_rows(first, static_cast<int>(weight.shape(0)), weight.data());
}

void pack_codes(Linear& linear, int first, const Array<uint8_t>& codes, const Array<uint8_t>& scales,
                const Array<uint8_t>& minima, const Array<float>& row_scales) {
  expect(linear.dtype() == DType::kInt4, "codes: expected a layer of int4");
  expect(codes.ndim() == 2 && codes.shape(1) == linear.columns(), "codes: expected [count, ",
         linear.columns(), "], got ", codes.ndim(), " dimensions and ", codes.size(), " numbers");
  const int64_t count = codes.shape(0), groups = num_int4_groups(linear.columns());
  expect(first >= 0 && first + count <= linear.rows(), "codes: expected rows within the layer's ",
         linear.rows(), ", got ", count, " from ", first, " on");
  expect_size("scales", scales, count * groups);
  expect_size("minima", minima, count * groups);
  expect_size("row_scales", row_scales, count);
  const uint8_t largest = codes.size() > 0 ? *std::max_element(codes.data(), codes.data() + codes.size()) : 0;
  expect(largest <= kInt4MaxCode, "codes: expected at most ", kInt4MaxCode, ", got ",
         static_cast<int>(largest));
  const py::gil_scoped_release release;
  linear.pack_codes(first, static_cast<int>(count), codes.data(), scales.data(), minima.data(),
                    row_scales.data());
}

void pack_bytes(Linear& linear, int first, const Array<int8_t>& codes, const Array<float>& row_scales) {
  expect(linear.dtype() == DType::kInt8, "codes: expected a layer of int8");
  expect(codes.ndim() == 2 && codes.shape(1) == linear.columns(), "codes: expected [count, ",
         linear.columns(), "], got ", codes.ndim(), " dimensions and ", codes.size(), " numbers");
  const int64_t count = codes.shape(0);
  expect(first >= 0 && first + count <= linear.rows(), "codes: expected rows within the layer's ",
         linear.rows(), ", got ", count, " from ", first, " on");
  expect_size("row_scales", row_scales, count);
  const int8_t least = codes.size() > 0 ? *std::min_element(codes.data(), codes.data() + codes.size()) : 0;
  expect(least >= -127, "codes: expected at least -127, got ", static_cast<int>(least));
  const py::gil_scoped_release release;
  linear.pack_bytes(first, static_cast<int>(count), codes.data(), row_scales.data());
}

py::tuple round_weights_int4(const Array<float>& weight) {
  expect(weight.ndim() == 2, "weight: expected [rows, columns], got ", weight.ndim(), " dimensions");
  const py::ssize_t rows = weight.shape(0), columns = weight.shape(1);
  const py::ssize_t groups = num_int4_groups(static_cast<int>(columns));
  Array<uint8_t> codes({rows, columns}), scales({rows, groups}), minima({rows, groups});
  Array<float> row_scales(rows);
  uint8_t *codes_out = codes.mutable_data(), *scales_out = scales.mutable_data(),
          *minima_out = minima.mutable_data();
  float* row_scales_out = row_scales.mutable_data();
  {
    const py::gil_scoped_release release;
    for (py::ssize_t r = 0; r < rows; ++r) {
      const float* row = weight.data() + r * columns;
      const float row_scale = row_scales_out[r] = int4_row_scale(row, static_cast<int>(columns));
      for (py::ssize_t g = 0; g < groups; ++g) {
        const py::ssize_t begin = g * kInt4Columns;
        const int count = static_cast<int>(std::min<py::ssize_t>(kInt4Columns, columns - begin));
        const Int4Group group = fit_int4(row + begin, count, row_scale);
        round_int4(row + begin, count, row_scale, group, codes_out + r * columns + begin);
        scales_out[r * groups + g] = group.scale, minima_out[r * groups + g] = group.minimum;
      }
    }
  }
  return py::make_tuple(codes, scales, minima, row_scales);
}

py::tuple fit_groups_int4(const Array<float>& weight, const Array<float>& row_scales) {
  expect(weight.ndim() == 2 && weight.shape(1) >= 1 && weight.shape(1) <= kInt4Columns,
         "weight: expected [rows, 1 to ", kInt4Columns, "], got ", weight.ndim(), " dimensions and ",
         weight.size(), " numbers");
  const py::ssize_t rows = weight.shape(0), columns = weight.shape(1);
  expect_size("row_scales", row_scales, rows);
  Array<uint8_t> scales(rows), minima(rows);
  uint8_t *scales_out = scales.mutable_data(), *minima_out = minima.mutable_data();
  {
    const py::gil_scoped_release release;
    for (py::ssize_t r = 0; r < rows; ++r) {
      const Int4Group group =
          fit_int4(weight.data() + r * columns, static_cast<int>(columns), row_scales.data()[r]);
      scales_out[r] = group.scale, minima_out[r] = group.minimum;
    }
  }
  return py::make_tuple(scales, minima);
}

void set_bias(Linear& linear, const Array<float>& bias) {
  expect(linear.has_bias(), "bias: expected a layer made with has_bias=True");
  expect_size("bias", bias, linear.rows());
  linear.set_bias(bias.data());
}

// ---- the transformer

std::unique_ptr<Model> make_model(int hidden_size, int num_heads, const std::string& kv_dtype,
                                  const Array<float>& position_table, int num_threads, int spin_us,
                                  const std::string& instruction_set) {
  expect(hidden_size >= 1 && num_heads >= 1 && hidden_size % num_heads == 0 &&
             hidden_size / num_heads <= kMaxHeadDim,
         "hidden_size: expected a multiple of num_heads, with heads of at most ", kMaxHeadDim, ", got ",
         hidden_size, " and ", num_heads);
  expect(position_table.ndim() == 2 && position_table.shape(1) == hidden_size,
         "position_table: expected [positions, ", hidden_size, "], got ", position_table.ndim(),
         " dimensions and ", position_table.size(), " numbers");
  expect(num_threads >= 1, "num_threads: expected at least 1, got ", num_threads);
  expect(spin_us >= 0, "spin_us: expected at least 0, got ", spin_us);
  expect(kv_dtype == "float32" || kv_dtype == "bfloat16" || kv_dtype == "int8",
         "kv_dtype: expected float32, bfloat16 or int8, got ", kv_dtype);
  return std::make_unique<Model>(hidden_size, num_heads, to_dtype("kv_dtype", kv_dtype),
                                 to_vector(position_table), num_threads, spin_us, instruction_set);
}

void add_layer(Model& model, const Array<float>& norm1_weight, const Array<float>& norm1_bias,
               std::shared_ptr<Linear> qkv, std::shared_ptr<Linear> out_proj,
               const Array<float>& norm2_weight, const Array<float>& norm2_bias,
               std::shared_ptr<Linear> mlp_in, std::shared_ptr<Linear> mlp_out, int window) {
  const int hidden = model.hidden_size();
  expect(!model.is_complete(), "add_layer: expected before set_final_norm");
  expect_size("norm1_weight", norm1_weight, hidden);
  expect_size("norm1_bias", norm1_bias, hidden);
  expect_size("norm2_weight", norm2_weight, hidden);
  expect_size("norm2_bias", norm2_bias, hidden);
  expect_shape("qkv", qkv, 3 * hidden, hidden);
  expect_shape("out_proj", out_proj, hidden, hidden);
  expect_shape("mlp_in", mlp_in, mlp_in ? mlp_in->rows() : 0, hidden);
  expect_shape("mlp_out", mlp_out, hidden, mlp_in->rows());
  expect(window >= 1, "window: expected at least 1, got ", window);
  model.add_layer({to_vector(norm1_weight), to_vector(norm1_bias), to_vector(norm2_weight),
                   to_vector(norm2_bias), std::move(qkv), std::move(out_proj), std::move(mlp_in),
                   std::move(mlp_out), window});
}

void set_final_norm(Model& model, const Array<float>& weight, const Array<float>& bias) {
  expect(model.num_layers() >= 1 && !model.is_complete(),
         "set_final_norm: expected one call, after the layers");
  expect_size("weight", weight, model.hidden_size());
  expect_size("bias", bias, model.hidden_size());
  model.set_final_norm(to_vector(weight), to_vector(bias));
}

namespace {

// Checks what both kinds of steps are given, and holds the pointers of their plan.
struct CheckedPlan {
  // most_new: tokens of a session.
  CheckedPlan(const Model& model, const std::vector<Array<float>>& embeddings,
              const std::vector<int32_t>& num_new, const std::vector<int32_t>& context_lens,
              const std::vector<int32_t>& start_offsets, const std::vector<Array<int32_t>>& page_tables,
              const Array<uint8_t>& pool, int most_new) {
    expect_complete(model);
    const size_t sessions = num_new.size();
    expect(sessions >= 1, "num_new: expected at least one session");
    expect(
        context_lens.size() == sessions && start_offsets.size() == sessions && page_tables.size() == sessions,
        "context_lens, start_offsets, page_tables: expected ", sessions, " sessions, as in num_new, got ",
        context_lens.size(), ", ", start_offsets.size(), ", ", page_tables.size());

    for (const Array<float>& embedding : embeddings) {
      expect(embedding.size() >= model.hidden_size(), "embeddings: expected ", model.hidden_size(),
             " numbers each, got ", embedding.size());
      tokens.push_back(embedding.data());
    }

    const int64_t num_pages = pool.size() / static_cast<py::ssize_t>(model.page_bytes());
    size_t total = 0;
    for (size_t i = 0; i < sessions; ++i) {
      expect(num_new[i] >= 1 && num_new[i] <= most_new, "num_new: expected 1 to ", most_new, ", got ",
             num_new[i]);
      expect(context_lens[i] >= 0 && context_lens[i] <= model.max_positions() - num_new[i],
             "context_lens: expected 0 to ", model.max_positions() - num_new[i], ", got ", context_lens[i]);
      expect(start_offsets[i] >= 0 && start_offsets[i] < kPageSize, "start_offsets: expected 0 to ",
             kPageSize - 1, ", got ", start_offsets[i]);

      const int pages = (start_offsets[i] + context_lens[i] + num_new[i] + kPageSize - 1) / kPageSize;
      expect(page_tables[i].size() >= pages, "page_tables: expected at least ", pages, " pages, got ",
             page_tables[i].size());
      const int32_t* table = page_tables[i].data();
      for (int page = 0; page < pages; ++page)
        expect(table[page] >= 0 && table[page] < num_pages, "page_tables: expected pages below ", num_pages,
               ", the size of the pool, got ", table[page]);
      tables.push_back(table);
      total += num_new[i];
    }
    expect(total == tokens.size(), "embeddings: expected one for each of the ", total, " new tokens, got ",
           tokens.size());
    plan = {static_cast<int>(sessions), static_cast<int>(total), tokens.data(), num_new.data(),
            context_lens.data(),        start_offsets.data(),    tables.data(), nullptr};
  }

  std::vector<const float*> tokens;
  std::vector<const int32_t*> tables;
  StepPlan plan;
};

}  // namespace

py::list decode(Model& model, const std::vector<Array<float>>& embeddings,
                const std::vector<int32_t>& num_new, const std::vector<int32_t>& context_lens,
                const std::vector<int32_t>& start_offsets, const std::vector<Array<int32_t>>& page_tables,
                Array<uint8_t>& pool, const std::vector<const Linear*>& heads) {
  const CheckedPlan checked(model, embeddings, num_new, context_lens, start_offsets, page_tables, pool,
                            kMaxStepTokens);
  const size_t sessions = num_new.size();
  expect(heads.size() == sessions, "heads: expected ", sessions, ", as in num_new, got ", heads.size());
  std::vector<Array<float>> predictions;
  std::vector<float*> out;
  for (const Linear* head : heads) {
    expect(head != nullptr && head->columns() == model.hidden_size(), "heads: expected [rows, ",
           model.hidden_size(), "]");
    predictions.emplace_back(head->padded_rows());
    out.push_back(predictions.back().mutable_data());
  }

  uint8_t* pages = pool.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    model.decode(checked.plan, {heads.data(), out.data()}, pages);
  }

  py::list results(sessions);
  for (size_t i = 0; i < sessions; ++i) {
    bool finite = true;
    for (int row = 0; row < heads[i]->rows(); ++row) finite = finite && std::isfinite(out[i][row]);
    // A view without the rows that are padding.
    results[i] =
        py::make_tuple(py::array(py::dtype::of<float>(), {heads[i]->rows()}, out[i], predictions[i]), finite);
  }
  return results;
}

py::array decode_text(Model& model, const std::vector<Array<float>>& embeddings,
                      const std::vector<int32_t>& num_new, const std::vector<int32_t>& context_lens,
                      const std::vector<Array<int32_t>>& page_tables, Array<uint8_t>& pool,
                      const std::vector<int32_t>& num_predicted, const Linear& head) {
  const std::vector<int32_t> start_offsets(num_new.size(), 0);
  CheckedPlan checked(model, embeddings, num_new, context_lens, start_offsets, page_tables, pool,
                      model.max_positions());
  expect(num_predicted.size() == num_new.size(), "num_predicted: expected ", num_new.size(),
         ", as in num_new, got ", num_predicted.size());
  py::ssize_t total = 0;
  for (size_t i = 0; i < num_new.size(); ++i) {
    expect(num_predicted[i] >= 0 && num_predicted[i] <= num_new[i], "num_predicted: expected 0 to ",
           num_new[i], ", got ", num_predicted[i]);
    total += num_predicted[i];
  }
  expect(head.columns() == model.hidden_size(), "head: expected [rows, ", model.hidden_size(), "], got ",
         head.columns(), " columns");

  checked.plan.num_predicted = num_predicted.data();
  Array<float> out = empty_rows(total, head.padded_rows());
  float* result = out.mutable_data();
  uint8_t* pages = pool.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    model.decode(checked.plan, head, result, pages);
  }
  return without_padding(out, head);
}

py::array apply(Model& model, const Linear& linear, const Array<float>& x) {
  expect_complete(model);
  expect(x.ndim() == 2 && x.shape(1) == linear.columns(), "x: expected [tokens, ", linear.columns(),
         "], got ", x.ndim(), " dimensions and ", x.size(), " numbers");
  Array<float> out = empty_rows(x.shape(0), linear.padded_rows());
  float* result = out.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    model.apply(linear, x.data(), static_cast<int>(x.shape(0)), result);
  }
  return without_padding(out, linear);
}

Array<float> embed(Model& model, const Linear& linear, const Array<float>& values, float last) {
  expect_complete(model);
  const int count = static_cast<int>(values.size()) + (std::isnan(last) ? 0 : 1);
  expect(count == linear.columns(), "values: expected ", linear.columns(),
         " numbers, one for each column of the layer, got ", count);
  thread_local std::vector<float> x;
  x.assign(values.data(), values.data() + values.size());
  if (!std::isnan(last)) x.push_back(last);
  Array<float> out(linear.padded_rows());
  // Keeps the GIL: this takes microseconds only.
  const Stopwatch stopwatch(model);
  model.apply(linear, x.data(), 1, out.mutable_data());
  return out;
}

// ---- encoders

std::unique_ptr<DiscreteEncoder> make_discrete_encoder(const Array<float>& features,
                                                       std::shared_ptr<Linear> linear) {
  expect(features.ndim() == 2 && features.shape(1) > 0, "features: expected [vocab_size, width], got ",
         features.ndim(), " dimensions and ", features.size(), " numbers");
  expect(linear != nullptr, "linear: expected a Linear, got None");
  expect(linear->columns() % features.shape(1) == 0, "linear: expected a multiple of ", features.shape(1),
         " columns, got ", linear->columns());
  return std::make_unique<DiscreteEncoder>(to_vector(features), static_cast<int>(features.shape(1)),
                                           std::move(linear));
}

py::list encode_integers(DiscreteEncoder& encoder, Model& model, const std::vector<Array<int64_t>>& values,
                         const std::vector<std::optional<Array<int64_t>>>& missions,
                         const std::vector<float>& rewards) {
  expect_complete(model);
  expect(missions.size() == values.size() && rewards.size() == values.size(), "missions, rewards: expected ",
         values.size(), ", as many as values, got ", missions.size(), " and ", rewards.size());
  expect(encoder.padded_rows() >= model.hidden_size(), "linear: expected at least ", model.hidden_size(),
         " rows, got ", encoder.padded_rows());
  const int64_t vocab_size = encoder.vocab_size();
  const auto expect_known = [&](const int64_t* integers, int count) {
    for (int i = 0; i < count; ++i)
      expect(integers[i] >= 0 && integers[i] < vocab_size, "values: expected integers of 0 to ",
             vocab_size - 1, ", got ", integers[i]);
  };

  std::vector<Integers> observations;
  for (size_t i = 0; i < values.size(); ++i) {
    const int num_values = static_cast<int>(values[i].size());
    const int num_mission = missions[i] ? static_cast<int>(missions[i]->size()) : 0;
    const int64_t* mission = missions[i] ? missions[i]->data() : nullptr;
    expect(num_values + num_mission == encoder.num_integers(), "values: expected ", encoder.num_integers(),
           " integers with the mission's, got ", num_values + num_mission);
    expect_known(values[i].data(), num_values);
    expect_known(mission, num_mission);
    observations.push_back({values[i].data(), num_values, mission, num_mission, rewards[i]});
  }

  Array<float> out = empty_rows(values.size(), encoder.padded_rows());
  float* result = out.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    encoder.encode(model, observations.data(), static_cast<int>(observations.size()), result);
  }
  return rows_of(out);
}

void add_stage(ImageEncoder& encoder, int in_size, const Array<float>& weight, const Array<float>& gate_in,
               const Array<float>& gate_out) {
  expect(weight.ndim() == 4 && weight.shape(2) == 3 && weight.shape(3) == 3,
         "weight: expected [out, in, 3, 3], got ", weight.ndim(), " dimensions and ", weight.size(),
         " numbers");
  const int channels = static_cast<int>(weight.shape(0));
  expect(channels % kBlockRows == 0 && channels <= 128,
         "weight: expected a multiple of 16 channels, at most 128, got ", channels);
  expect_size("gate_in", gate_in, channels / 8 * channels);
  expect_size("gate_out", gate_out, channels / 8 * channels);
  expect(!encoder.has_linear(), "add_stage: expected before set_linear");
  encoder.add_stage(static_cast<int>(weight.shape(1)), channels, in_size, weight.data(), gate_in.data(),
                    gate_out.data());
}

void set_linear(ImageEncoder& encoder, std::shared_ptr<Linear> linear) {
  expect(linear != nullptr, "linear: expected a Linear, got None");
  expect(!encoder.has_linear(), "set_linear: expected one call, after the stages");
  encoder.set_linear(std::move(linear));
}

py::list encode_frames(ImageEncoder& encoder, Model& model, const std::vector<Array<uint8_t>>& frames) {
  expect_complete(model);
  expect(encoder.is_complete(), "encoder: expected stages that follow each other, and a linear layer");
  std::vector<const uint8_t*> pointers;
  for (const Array<uint8_t>& frame : frames) {
    expect(static_cast<size_t>(frame.size()) == encoder.frame_bytes(), "frames: expected ",
           encoder.frame_bytes(), " bytes each, got ", frame.size());
    pointers.push_back(frame.data());
  }

  Array<float> out = empty_rows(frames.size(), encoder.padded_rows());
  float* result = out.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    encoder.encode(model, pointers.data(), static_cast<int>(pointers.size()), result);
  }
  return rows_of(out);
}

}  // namespace jat::bindings
