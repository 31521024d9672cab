// The Python module jat_engine._cpu. Free of torch headers: it builds in seconds, against any torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "bandwidth.h"
#include "discrete_encoder.h"
#include "features.h"
#include "image_encoder.h"
#include "linear.h"
#include "model.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void expect(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

jat::DType to_dtype(const std::string& name) {
  if (name == "float32") return jat::DType::kFloat32;
  if (name == "bfloat16") return jat::DType::kBFloat16;
  if (name == "int8") return jat::DType::kInt8;
  throw std::invalid_argument("dtype: expected float32, bfloat16 or int8, got " + name);
}

// Adds its life to the model's `seconds`.
class Stopwatch {
 public:
  explicit Stopwatch(jat::Model& model) : model_(model), begin_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    model_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  jat::Model& model_;
  std::chrono::steady_clock::time_point begin_;
};

void pack_rows(jat::Linear& linear, int first, const Array<float>& weight) {
  expect(weight.ndim() == 2 && weight.shape(1) == linear.columns(), "weight: expected [count, columns]");
  expect(first >= 0 && first + weight.shape(0) <= linear.rows(), "weight: more rows than the layer has");
  const py::gil_scoped_release release;
  linear.pack_rows(first, static_cast<int>(weight.shape(0)), weight.data());
}

void add_layer(jat::Model& model, const Array<float>& norm1_weight, const Array<float>& norm1_bias,
               std::shared_ptr<jat::Linear> qkv, std::shared_ptr<jat::Linear> attention_out,
               const Array<float>& norm2_weight, const Array<float>& norm2_bias,
               std::shared_ptr<jat::Linear> mlp_in, std::shared_ptr<jat::Linear> mlp_out, int window) {
  const int hidden = model.hidden_size();
  expect(!model.is_complete(), "add_layer: expected before set_final_norm");
  expect(norm1_weight.size() == hidden && norm1_bias.size() == hidden && norm2_weight.size() == hidden &&
             norm2_bias.size() == hidden,
         "norms: expected [H]");
  expect(qkv && attention_out && mlp_in && mlp_out, "layers: expected four of them");
  expect(qkv->rows() == 3 * hidden && qkv->columns() == hidden && attention_out->rows() == hidden &&
             attention_out->columns() == hidden && mlp_in->columns() == hidden && mlp_out->rows() == hidden &&
             mlp_out->columns() == mlp_in->rows() && window >= 1,
         "layers: sizes do not fit together");
  model.add_layer({to_vector(norm1_weight), to_vector(norm1_bias), to_vector(norm2_weight),
                   to_vector(norm2_bias), std::move(qkv), std::move(attention_out), std::move(mlp_in),
                   std::move(mlp_out), window});
}

// A session's prediction and whether all of it is finite.
py::list decode(jat::Model& model, const std::vector<Array<float>>& embeddings,
                const std::vector<int32_t>& num_new, const std::vector<int32_t>& context_lens,
                const std::vector<int32_t>& start_offsets, const std::vector<Array<int32_t>>& page_tables,
                Array<uint8_t>& pool, const std::vector<const jat::Linear*>& heads) {
  const size_t sessions = num_new.size();
  expect(context_lens.size() == sessions && start_offsets.size() == sessions &&
             page_tables.size() == sessions && heads.size() == sessions,
         "plan: lists are of different numbers of sessions");
  expect(sessions >= 1, "plan: expected at least one session");
  expect(model.is_complete(), "model: expected set_final_norm to have been called");
  const int64_t num_pages = pool.size() / static_cast<py::ssize_t>(model.page_bytes());
  std::vector<const float*> tokens;
  std::vector<const int32_t*> tables;
  std::vector<Array<float>> predictions;
  std::vector<float*> out;
  size_t total = 0;
  for (const Array<float>& embedding : embeddings) {
    expect(embedding.size() >= model.hidden_size(), "embeddings: expected [H]");
    tokens.push_back(embedding.data());
  }
  for (size_t i = 0; i < sessions; ++i) {
    expect(num_new[i] >= 1 && num_new[i] <= jat::kMaxQueries && context_lens[i] >= 0 &&
               context_lens[i] <= model.max_positions() - num_new[i],
           "plan: expected 1 to 4 new tokens within the positions");
    expect(start_offsets[i] >= 0 && start_offsets[i] < jat::kPageSize,
           "start_offsets: expected slots of a page");
    const int pages = (start_offsets[i] + context_lens[i] + num_new[i] + jat::kPageSize - 1) / jat::kPageSize;
    expect(page_tables[i].size() >= pages, "page_tables: too few pages");
    for (int page = 0; page < pages; ++page)
      expect(page_tables[i].data()[page] >= 0 && page_tables[i].data()[page] < num_pages,
             "page_tables: no such page");
    expect(heads[i] != nullptr && heads[i]->columns() == model.hidden_size(), "heads: expected [rows, H]");
    tables.push_back(page_tables[i].data());
    predictions.emplace_back(heads[i]->padded_rows());
    out.push_back(predictions.back().mutable_data());
    total += num_new[i];
  }
  expect(total == tokens.size(), "embeddings: expected one for each new token");
  const jat::Plan plan = {
      static_cast<int>(sessions), static_cast<int>(total), tokens.data(), num_new.data(), context_lens.data(),
      start_offsets.data(),       tables.data(),           heads.data(),  out.data()};
  uint8_t* pages = pool.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    model.decode(plan, pages);
  }
  py::list results(sessions);
  for (size_t i = 0; i < sessions; ++i) {
    bool finite = true;
    for (int row = 0; row < heads[i]->rows(); ++row) finite = finite && std::isfinite(out[i][row]);
    // A view of the rows that are not padding.
    results[i] =
        py::make_tuple(py::array(py::dtype::of<float>(), {heads[i]->rows()}, out[i], predictions[i]), finite);
  }
  return results;
}

// The embedding of numbers, followed by one more unless that is NaN.
Array<float> embed(jat::Model& model, const jat::Linear& linear, const Array<float>& values, float last) {
  const int count = static_cast<int>(values.size()) + (std::isnan(last) ? 0 : 1);
  expect(count == linear.columns(), "values: expected as many as the layer has columns");
  expect(model.is_complete(), "model: expected set_final_norm to have been called");
  thread_local std::vector<float> x;
  x.assign(values.data(), values.data() + values.size());
  if (!std::isnan(last)) x.push_back(last);
  Array<float> out(linear.padded_rows());
  const Stopwatch stopwatch(model);
  model.apply(linear, x.data(), 1, out.mutable_data());
  return out;
}

// Rows [padded_rows] of one array, as arrays that keep it alive.
py::list rows_of(const Array<float>& array) {
  py::list rows(array.shape(0));
  for (py::ssize_t i = 0; i < array.shape(0); ++i)
    rows[i] = py::array(py::dtype::of<float>(), {array.shape(1)}, array.data(i), array);
  return rows;
}

py::list encode_integers(jat::DiscreteEncoder& encoder, jat::Model& model,
                         const std::vector<Array<int64_t>>& values,
                         const std::vector<std::optional<Array<int64_t>>>& missions,
                         const std::vector<float>& rewards) {
  expect(missions.size() == values.size() && rewards.size() == values.size(),
         "observations: lists differ in length");
  expect(encoder.padded_rows() >= model.hidden_size(), "linear: expected a row for every feature");
  std::vector<jat::Integers> observations;
  for (size_t i = 0; i < values.size(); ++i) {
    const int num_values = static_cast<int>(values[i].size());
    const int num_mission = missions[i] ? static_cast<int>(missions[i]->size()) : 0;
    const int64_t* mission = missions[i] ? missions[i]->data() : nullptr;
    expect(num_values + num_mission == encoder.num_integers(), "values: wrong number of integers");
    bool known = true;
    for (int j = 0; j < num_values; ++j)
      known = known && values[i].data()[j] >= 0 && values[i].data()[j] < encoder.vocab_size();
    for (int j = 0; j < num_mission; ++j)
      known = known && mission[j] >= 0 && mission[j] < encoder.vocab_size();
    expect(known, "values: expected integers of the vocabulary");
    observations.push_back({values[i].data(), num_values, mission, num_mission, rewards[i]});
  }
  Array<float> out(
      {static_cast<py::ssize_t>(values.size()), static_cast<py::ssize_t>(encoder.padded_rows())});
  float* result = out.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    encoder.encode(model, observations.data(), static_cast<int>(observations.size()), result);
  }
  return rows_of(out);
}

void add_stage(jat::ImageEncoder& encoder, int in_size, const Array<float>& weight,
               const Array<float>& gate_in, const Array<float>& gate_out) {
  expect(weight.ndim() == 4 && weight.shape(2) == 3 && weight.shape(3) == 3,
         "weight: expected [out, in, 3, 3]");
  const int channels = static_cast<int>(weight.shape(0));
  expect(channels % jat::kBlockRows == 0 && channels <= 128,
         "weight: expected channels in blocks of 16, at most 128");
  expect(gate_in.size() == channels / 8 * channels && gate_out.size() == gate_in.size(), "gates: wrong size");
  encoder.add_stage(static_cast<int>(weight.shape(1)), channels, in_size, weight.data(), gate_in.data(),
                    gate_out.data());
}

py::list encode_frames(jat::ImageEncoder& encoder, jat::Model& model,
                       const std::vector<Array<uint8_t>>& frames) {
  expect(encoder.is_complete(), "encoder: expected stages that follow each other, and a linear layer");
  std::vector<const uint8_t*> pointers;
  for (const Array<uint8_t>& frame : frames) {
    expect(static_cast<size_t>(frame.size()) == encoder.frame_bytes(),
           "frames: expected [size, size, channels]");
    pointers.push_back(frame.data());
  }
  Array<float> out(
      {static_cast<py::ssize_t>(frames.size()), static_cast<py::ssize_t>(encoder.padded_rows())});
  float* result = out.mutable_data();
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model);
    encoder.encode(model, pointers.data(), static_cast<int>(pointers.size()), result);
  }
  return rows_of(out);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() =
      "Native CPU parts of jat_engine. Arrays are C-contiguous numpy arrays of exactly the type that is "
      "named.";
  module.def("cpu_features", &jat::cpu_features,
             "Instruction sets of the running processor that matter here, e.g. ['avx2', 'avx512_bf16'].");
  module.def("instruction_sets", &jat::available_kernels,
             "Versions of the kernels that the running processor can run, best first.");
  module.def(
      "read_bandwidth",
      [](size_t num_bytes, int num_threads, int repeats) {
        expect(num_threads >= 1 && repeats >= 1, "read_bandwidth: expected at least one thread and repeat");
        return jat::read_bandwidth(num_bytes, num_threads, repeats);
      },
      py::arg("num_bytes"), py::arg("num_threads"), py::arg("repeats") = 5,
      py::call_guard<py::gil_scoped_release>(),
      "Bytes per second that threads read from memory together; the median of `repeats` passes.");
  module.attr("PAGE_SIZE") = jat::kPageSize;
  module.attr("MAX_HEAD_DIM") = jat::kMaxHeadDim;
  module.attr("compiler") =
#if defined(__clang__)
      "clang " __clang_version__;
#elif defined(__GNUC__)
      "gcc " __VERSION__;
#else
      "unknown";
#endif

  py::class_<jat::Linear, std::shared_ptr<jat::Linear>>(module, "Linear")
      .def(py::init([](const std::string& dtype, int rows, int columns, bool has_bias) {
             expect(rows >= 1 && columns >= 1, "rows, columns: expected at least 1");
             return std::make_shared<jat::Linear>(to_dtype(dtype), rows, columns, has_bias);
           }),
           py::arg("dtype"), py::arg("rows"), py::arg("columns"), py::arg("has_bias"))
      .def("pack_rows", &pack_rows, py::arg("first"), py::arg("weight").noconvert())
      .def(
          "set_bias",
          [](jat::Linear& linear, const Array<float>& bias) {
            expect(linear.has_bias() && bias.size() == linear.rows(),
                   "bias: expected [rows] of a layer with one");
            linear.set_bias(bias.data());
          },
          py::arg("bias").noconvert())
      .def_property_readonly("rows", &jat::Linear::rows)
      .def_property_readonly("padded_rows", &jat::Linear::padded_rows)
      .def_property_readonly("num_bytes", &jat::Linear::bytes);

  py::class_<jat::Model>(module, "Model")
      .def(py::init([](int hidden_size, int num_heads, const std::string& kv_dtype,
                       const Array<float>& positions, int num_threads, int spin_us,
                       const std::string& instruction_set) {
             expect(hidden_size >= 1 && num_heads >= 1 && hidden_size % num_heads == 0 &&
                        hidden_size / num_heads <= jat::kMaxHeadDim,
                    "hidden_size: expected heads of at most MAX_HEAD_DIM");
             expect(positions.ndim() == 2 && positions.shape(1) == hidden_size, "positions: expected [P, H]");
             expect(num_threads >= 1 && spin_us >= 0, "num_threads, spin_us: expected at least 1 and 0");
             expect(kv_dtype != "int8", "kv_dtype: expected float32 or bfloat16");
             return std::make_unique<jat::Model>(hidden_size, num_heads, to_dtype(kv_dtype),
                                                 to_vector(positions), num_threads, spin_us, instruction_set);
           }),
           py::arg("hidden_size"), py::arg("num_heads"), py::arg("kv_dtype"),
           py::arg("positions").noconvert(), py::arg("num_threads"), py::arg("spin_us"),
           py::arg("instruction_set"))
      .def("add_layer", &add_layer, py::arg("norm1_weight").noconvert(), py::arg("norm1_bias").noconvert(),
           py::arg("qkv"), py::arg("attention_out"), py::arg("norm2_weight").noconvert(),
           py::arg("norm2_bias").noconvert(), py::arg("mlp_in"), py::arg("mlp_out"), py::arg("window"))
      .def(
          "set_final_norm",
          [](jat::Model& model, const Array<float>& weight, const Array<float>& bias) {
            expect(weight.size() == model.hidden_size() && bias.size() == model.hidden_size(),
                   "norm: expected [H]");
            expect(model.num_layers() >= 1 && !model.is_complete(),
                   "set_final_norm: expected once, after the layers");
            model.set_final_norm(to_vector(weight), to_vector(bias));
          },
          py::arg("weight").noconvert(), py::arg("bias").noconvert())
      .def_property_readonly("page_bytes", &jat::Model::page_bytes)
      .def_property_readonly("instruction_set", &jat::Model::instruction_set)
      .def_property_readonly("num_threads", &jat::Model::num_threads)
      .def_readonly("seconds", &jat::Model::seconds)
      .def("decode", &decode, py::arg("embeddings"), py::arg("num_new"), py::arg("context_lens"),
           py::arg("start_offsets"), py::arg("page_tables"), py::arg("pool").noconvert(), py::arg("heads"))
      .def("embed", &embed, py::arg("linear"), py::arg("values").noconvert(),
           py::arg("last") = std::numeric_limits<float>::quiet_NaN());

  py::class_<jat::DiscreteEncoder>(module, "DiscreteEncoder")
      .def(py::init([](const Array<float>& features, std::shared_ptr<jat::Linear> linear) {
             expect(linear && features.ndim() == 2 && features.shape(1) > 0 &&
                        linear->columns() % features.shape(1) == 0,
                    "features, linear: sizes do not fit together");
             return std::make_unique<jat::DiscreteEncoder>(
                 to_vector(features), static_cast<int>(features.shape(1)), std::move(linear));
           }),
           py::arg("features").noconvert(), py::arg("linear"))
      .def("encode", &encode_integers, py::arg("model"), py::arg("values"), py::arg("missions"),
           py::arg("rewards"));

  py::class_<jat::ImageEncoder>(module, "ImageEncoder")
      .def(py::init<>())
      .def("add_stage", &add_stage, py::arg("in_size"), py::arg("weight").noconvert(),
           py::arg("gate_in").noconvert(), py::arg("gate_out").noconvert())
      .def("set_linear", &jat::ImageEncoder::set_linear)
      .def("encode", &encode_frames, py::arg("model"), py::arg("frames"));
}
