// The Python module jat_engine._cpu. Free of torch headers: it builds in seconds, against any torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bandwidth.h"
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
  model.add_layer({to_vector(norm1_weight), to_vector(norm1_bias), to_vector(norm2_weight),
                   to_vector(norm2_bias), std::move(qkv), std::move(attention_out), std::move(mlp_in),
                   std::move(mlp_out), window});
}

void decode(jat::Model& model, const Array<float>& embeddings, const Array<int32_t>& first_token,
            const Array<int32_t>& context_lens, const Array<int32_t>& start_offsets,
            const Array<int32_t>& page_table, Array<uint8_t>& pool,
            const std::vector<const jat::Linear*>& heads, Array<float>& out) {
  const py::ssize_t sessions = context_lens.size();
  expect(first_token.size() == sessions + 1 && start_offsets.size() == sessions && page_table.ndim() == 2 &&
             page_table.shape(0) == sessions && static_cast<py::ssize_t>(heads.size()) == sessions,
         "plan: arrays are of different numbers of sessions");
  expect(embeddings.ndim() == 2 && embeddings.shape(0) == first_token.data()[sessions],
         "embeddings: expected [T, H]");
  expect(out.ndim() == 2 && out.shape(0) == sessions, "out: expected a row a session");
  for (const jat::Linear* head : heads)
    expect(head->padded_rows() <= out.shape(1), "out: rows are too short");
  const jat::Plan plan = {static_cast<int>(sessions),
                          static_cast<int>(embeddings.shape(0)),
                          static_cast<int>(page_table.shape(1)),
                          first_token.data(),
                          context_lens.data(),
                          start_offsets.data(),
                          page_table.data()};
  uint8_t* pages = pool.mutable_data();
  float* result = out.mutable_data();
  const py::gil_scoped_release release;
  model.decode(plan, embeddings.data(), pages, heads, result, static_cast<int>(out.shape(1)));
}

void apply(jat::Model& model, const jat::Linear& linear, const Array<float>& x, Array<float>& out) {
  expect(x.ndim() == 2 && x.shape(1) == linear.columns(), "x: expected [T, columns]");
  expect(out.ndim() == 2 && out.shape(0) == x.shape(0) && out.shape(1) == linear.padded_rows(),
         "out: expected [T, padded rows]");
  float* result = out.mutable_data();
  const py::gil_scoped_release release;
  model.apply(linear, x.data(), static_cast<int>(x.shape(0)), result);
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

void encode(jat::ImageEncoder& encoder, jat::Model& model, const Array<uint8_t>& frames, Array<float>& out) {
  expect(frames.ndim() == 4 && out.ndim() == 2 && out.shape(0) == frames.shape(0),
         "frames: expected [B, S, S, C]");
  float* result = out.mutable_data();
  const py::gil_scoped_release release;
  encoder.encode(model, frames.data(), static_cast<int>(frames.shape(0)), result);
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
  module.def("read_bandwidth", &jat::read_bandwidth, py::arg("num_bytes"), py::arg("num_threads"),
             py::arg("repeats") = 5, py::call_guard<py::gil_scoped_release>(),
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
             return std::make_shared<jat::Linear>(to_dtype(dtype), rows, columns, has_bias);
           }),
           py::arg("dtype"), py::arg("rows"), py::arg("columns"), py::arg("has_bias"))
      .def("pack_rows", &pack_rows, py::arg("first"), py::arg("weight").noconvert())
      .def(
          "set_bias",
          [](jat::Linear& linear, const Array<float>& bias) {
            expect(bias.size() == linear.rows(), "bias: expected [rows]");
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
            model.set_final_norm(to_vector(weight), to_vector(bias));
          },
          py::arg("weight").noconvert(), py::arg("bias").noconvert())
      .def_property_readonly("page_bytes", &jat::Model::page_bytes)
      .def_property_readonly("instruction_set", &jat::Model::instruction_set)
      .def_property_readonly("num_threads", &jat::Model::num_threads)
      .def("decode", &decode, py::arg("embeddings").noconvert(), py::arg("first_token").noconvert(),
           py::arg("context_lens").noconvert(), py::arg("start_offsets").noconvert(),
           py::arg("page_table").noconvert(), py::arg("pool").noconvert(), py::arg("heads"),
           py::arg("out").noconvert())
      .def("apply", &apply, py::arg("linear"), py::arg("x").noconvert(), py::arg("out").noconvert());

  py::class_<jat::ImageEncoder>(module, "ImageEncoder")
      .def(py::init<>())
      .def("add_stage", &add_stage, py::arg("in_size"), py::arg("weight").noconvert(),
           py::arg("gate_in").noconvert(), py::arg("gate_out").noconvert())
      .def("set_linear", &jat::ImageEncoder::set_linear)
      .def("encode", &encode, py::arg("model"), py::arg("frames").noconvert(), py::arg("out").noconvert());
}
