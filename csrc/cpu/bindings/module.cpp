// The Python module jat_engine._cpu; _cpu.pyi documents it. Free of torch headers: it builds in seconds,
// against any torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>

#include "../dispatch.h"
#include "calls.h"
#include "quick_step.h"

namespace py = pybind11;
namespace calls = jat::bindings;

namespace {

constexpr const char* kCompiler =
#if defined(__clang__)
    "clang " __clang_version__;
#elif defined(__GNUC__)
    "gcc " __VERSION__;
#else
    "unknown";
#endif

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() =
      "Native CPU parts of jat_engine. Arrays are C-contiguous and of exactly the type that is named.";
  module.attr("PAGE_SIZE") = jat::kPageSize;
  module.attr("MAX_STEP_TOKENS") = jat::kMaxStepTokens;
  module.attr("MAX_HEAD_DIM") = jat::kMaxHeadDim;
  module.attr("compiler") = kCompiler;
  module.def("cpu_features", &jat::cpu_features);
  module.def("instruction_sets", &jat::available_kernels);
  module.def("read_bandwidth", &calls::measure_bandwidth, py::arg("num_bytes"), py::arg("num_threads"),
             py::arg("repeats") = 5);
  module.def("dot_peak", &calls::measure_dot_peak, py::arg("dtype"), py::arg("num_threads"),
             py::arg("repeats") = 9, py::arg("instruction_set") = "auto");

  module.attr("INT4_COLUMNS") = jat::kInt4Columns;
  module.attr("INT4_MINIMUM_UNIT") = jat::kInt4MinimumUnit;
  module.def("round_int4", &calls::round_weights_int4, py::arg("weight").noconvert());
  module.def("fit_int4", &calls::fit_groups_int4, py::arg("weight").noconvert(),
             py::arg("row_scales").noconvert());

  // noconvert: an array of another type is an error, rather than a silent copy.
  py::class_<jat::Linear, std::shared_ptr<jat::Linear>>(module, "Linear")
      .def(py::init(&calls::make_linear), py::arg("dtype"), py::arg("rows"), py::arg("columns"),
           py::arg("has_bias"))
      .def("pack_rows", &calls::pack_rows, py::arg("first"), py::arg("weight").noconvert())
      .def("pack_bytes", &calls::pack_bytes, py::arg("first"), py::arg("codes").noconvert(),
           py::arg("row_scales").noconvert())
      .def("pack_codes", &calls::pack_codes, py::arg("first"), py::arg("codes").noconvert(),
           py::arg("scales").noconvert(), py::arg("minima").noconvert(), py::arg("row_scales").noconvert())
      .def("set_bias", &calls::set_bias, py::arg("bias").noconvert())
      .def_property_readonly("rows", &jat::Linear::rows)
      .def_property_readonly("padded_rows", &jat::Linear::padded_rows)
      .def_property_readonly("num_bytes", &jat::Linear::bytes);

  py::class_<jat::Model>(module, "Model")
      .def(py::init(&calls::make_model), py::arg("hidden_size"), py::arg("num_heads"), py::arg("kv_dtype"),
           py::arg("position_table").noconvert(), py::arg("num_threads"), py::arg("spin_us"),
           py::arg("instruction_set"))
      .def("add_layer", &calls::add_layer, py::arg("norm1_weight").noconvert(),
           py::arg("norm1_bias").noconvert(), py::arg("qkv"), py::arg("out_proj"),
           py::arg("norm2_weight").noconvert(), py::arg("norm2_bias").noconvert(), py::arg("mlp_in"),
           py::arg("mlp_out"), py::arg("window"))
      .def("set_final_norm", &calls::set_final_norm, py::arg("weight").noconvert(),
           py::arg("bias").noconvert())
      .def_property_readonly("page_bytes", &jat::Model::page_bytes)
      .def_property_readonly("instruction_set", &jat::Model::instruction_set)
      .def_property_readonly("num_threads", &jat::Model::num_threads)
      .def_readonly("seconds", &jat::Model::seconds)
      .def("decode", &calls::decode, py::arg("embeddings"), py::arg("num_new"), py::arg("context_lens"),
           py::arg("start_offsets"), py::arg("page_tables"), py::arg("pool").noconvert(), py::arg("heads"))
      .def("decode_text", &calls::decode_text, py::arg("embeddings"), py::arg("num_new"),
           py::arg("context_lens"), py::arg("page_tables"), py::arg("pool").noconvert(),
           py::arg("num_predicted"), py::arg("head"))
      .def("apply", &calls::apply, py::arg("linear"), py::arg("x").noconvert())
      .def("embed", &calls::embed, py::arg("linear"), py::arg("values").noconvert(),
           py::arg("last") = std::numeric_limits<float>::quiet_NaN());

  py::class_<jat::DiscreteEncoder>(module, "DiscreteEncoder")
      .def(py::init(&calls::make_discrete_encoder), py::arg("features").noconvert(), py::arg("linear"))
      .def("encode", &calls::encode_integers, py::arg("model"), py::arg("values"), py::arg("missions"),
           py::arg("rewards"));

  py::class_<jat::ImageEncoder>(module, "ImageEncoder")
      .def(py::init<>())
      .def("add_stage", &calls::add_stage, py::arg("in_size"), py::arg("weight").noconvert(),
           py::arg("gate_in").noconvert(), py::arg("gate_out").noconvert())
      .def("set_linear", &calls::set_linear, py::arg("linear"))
      .def("encode", &calls::encode_frames, py::arg("model"), py::arg("frames"));

  py::class_<calls::QuickStep>(module, "QuickStep")
      .def(py::init<py::object, py::object, py::object, std::shared_ptr<jat::Linear>, calls::Array<uint8_t>,
                    int, bool>(),
           py::arg("model"), py::arg("encoder"), py::arg("action_encoder"), py::arg("head"),
           py::arg("pool").noconvert(), py::arg("num_values"), py::arg("has_mission"))
      .def("read", &calls::QuickStep::read)
      .def("run", &calls::QuickStep::run);
}
