// The Python modules jat_engine._cuda and, built for the CPU, _cuda_emulator. Free of torch headers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"
#include "layout.h"
#include "step_runner.h"

#ifdef JAT_EMULATOR
#include "emulator/device.h"
#include "emulator/record.h"
#define JAT_MODULE _cuda_emulator
#elif JAT_TRACE == 1
#define JAT_MODULE _cuda_traced
#else
#define JAT_MODULE _cuda
#endif

namespace py = pybind11;

#if JAT_RECORD
namespace jat::emulator::record {
void bind(py::module_& module);  // record_bindings.cpp
}
#endif

namespace jat {
namespace {

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

StepType to_type(const std::string& name) {
  if (name == "float32") return StepType::kFloat32;
  if (name == "bfloat16") return StepType::kBFloat16;
  if (name == "float16") return StepType::kFloat16;
  throw std::invalid_argument("weight_dtype: expected float32, bfloat16 or float16, got " + name);
}

// An address in `fields`; a bulk copy needs multiples of 16.
template <typename T>
T* address(const py::dict& fields, const std::string& where, const char* name, int alignment) {
  const std::string label = where + name;
  expect(fields.contains(name), label + ": missing");
  const auto value = fields[name].cast<uintptr_t>();
  expect(value != 0, label + ": expected an address, got 0");
  expect(value % alignment == 0, label + ": expected a multiple of " + std::to_string(alignment) + ", got " +
                                     std::to_string(value) + "; copy it into memory of its own");
  return reinterpret_cast<T*>(value);
}

template <typename T>
T* address(uintptr_t value, const char* name, int alignment) {
  expect(value != 0 && value % alignment == 0,
         std::string(name) + ": expected an address that is a multiple of " + std::to_string(alignment) +
             ", got " + std::to_string(value));
  return reinterpret_cast<T*>(value);
}

StepLayer to_layer(const py::dict& fields, int index) {
  const std::string where = "layers[" + std::to_string(index) + "].";
  StepLayer layer;
  layer.norm1_weight = address<const float>(fields, where, "norm1_weight", 16);
  layer.norm1_bias = address<const float>(fields, where, "norm1_bias", 16);
  layer.qkv = address<const void>(fields, where, "qkv", 16);
  layer.out_proj = address<const void>(fields, where, "out_proj", 16);
  layer.out_proj_bias = address<const float>(fields, where, "out_proj_bias", 16);
  layer.norm2_weight = address<const float>(fields, where, "norm2_weight", 16);
  layer.norm2_bias = address<const float>(fields, where, "norm2_bias", 16);
  layer.mlp_in = address<const void>(fields, where, "mlp_in", 16);
  layer.mlp_in_bias = address<const float>(fields, where, "mlp_in_bias", 16);
  layer.mlp_out = address<const void>(fields, where, "mlp_out", 16);
  layer.mlp_out_bias = address<const float>(fields, where, "mlp_out_bias", 16);
  return layer;
}

int32_t to_window(const py::dict& fields, int index) {
  const int32_t window = fields.contains("window") ? fields["window"].cast<int32_t>() : 0;
  expect(window >= 1,
         "layers[" + std::to_string(index) + "].window: expected at least 1, got " + std::to_string(window));
  return window;
}

InputArrays to_arrays(const py::dict& fields) {
  const auto get = [&](const char* name, int alignment) {
    return address<const void>(fields, "input.", name, alignment);
  };
  const auto integers = [&](const char* name) { return static_cast<const int32_t*>(get(name, 4)); };
  const auto addresses = [&](const char* name) { return static_cast<const int64_t*>(get(name, 8)); };
  InputArrays arrays;
  arrays.query_start = integers("query_start");
  arrays.context_lens = integers("context_lens");
  arrays.start_offsets = integers("start_offsets");
  arrays.page_table = integers("page_table");
  arrays.positions = integers("positions");
  arrays.slot_mapping = integers("slot_mapping");
  arrays.source_ptrs = addresses("source_ptrs");
  arrays.source_sizes = integers("source_sizes");
  arrays.value_starts = integers("value_starts");
  arrays.values = static_cast<const float*>(get("values", 4));
  arrays.head_ptrs = addresses("head_ptrs");
  arrays.head_bias_ptrs = addresses("head_bias_ptrs");
  arrays.head_sizes = integers("head_sizes");
  return arrays;
}

// A StepRunner for Python.
class Step {
 public:
  Step(const StepModel& model, const std::vector<StepLayer>& layers, const InputArrays& input, float* output,
       const StepOptions& options)
      : runner_(model, layers, input, output, options) {}

  // Returns "" when the predictions are in `output`, else the reason; the new tokens' keys and values are
  // then undefined. Between slices of the wait, signals are answered: Ctrl-C raises KeyboardInterrupt and
  // leaves the step unfinished.
  std::string run(int64_t stream) {
    const std::unique_lock<std::mutex> only(mutex_, std::try_to_lock);
    if (!only.owns_lock()) return "another thread is running this step";
    std::string reason;
    bool has_ended = false;
    {
      const py::gil_scoped_release nogil;
      reason = runner_.start(stream);
      if (reason.empty()) has_ended = runner_.wait(kSlice, reason);
    }
    while (reason.empty() && !has_ended) {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      const py::gil_scoped_release nogil;
      has_ended = runner_.wait(kSlice, reason);
    }
    return reason;
  }

  StepRunner& runner() { return runner_; }
  const StepModel& model() const { return runner_.model(); }

 private:
  static constexpr std::chrono::milliseconds kSlice{50};
  StepRunner runner_;
  std::mutex mutex_;
};

std::unique_ptr<Step> make_step(int hidden, int num_heads, int head_dim, int inner, int num_layers,
                                int max_positions, const std::string& weight_dtype, const py::list& layers,
                                uintptr_t final_norm_weight, uintptr_t final_norm_bias,
                                uintptr_t position_table, uintptr_t continuous_bias, uintptr_t kv_cache,
                                int num_pages, const py::dict& input, uintptr_t output, int capacity,
                                int num_blocks, int cluster_size, int num_threads, int64_t timeout_us,
                                int device, int max_slots) {
  expect(hidden >= 1, "hidden: expected at least 1, got " + std::to_string(hidden));
  expect(num_threads >= 0 && num_threads % 32 == 0,
         "num_threads: expected a multiple of 32, got " + std::to_string(num_threads));
  expect(
      num_layers >= 1 && num_layers <= kStepMaxLayers,
      "num_layers: expected 1 to " + std::to_string(kStepMaxLayers) + ", got " + std::to_string(num_layers));
  expect(py::len(layers) == static_cast<size_t>(num_layers),
         "layers: expected " + std::to_string(num_layers) + ", got " + std::to_string(py::len(layers)));

  StepModel model = {};
  model.hidden = hidden;
  model.num_heads = num_heads;
  model.head_dim = head_dim;
  model.inner = inner;
  model.num_layers = num_layers;
  model.num_pages = num_pages;
  model.type = to_type(weight_dtype);
  model.num_warps = num_threads > 0 ? num_threads / 32 : default_num_warps(hidden);
  std::vector<StepLayer> step_layers;
  for (int i = 0; i < num_layers; ++i) {
    const auto fields = layers[i].cast<py::dict>();
    step_layers.push_back(to_layer(fields, i));
    model.windows[i] = to_window(fields, i);
  }
  model.final_norm_weight = address<const float>(final_norm_weight, "final_norm_weight", 16);
  model.final_norm_bias = address<const float>(final_norm_bias, "final_norm_bias", 16);
  model.position_table = address<const float>(position_table, "position_table", 16);
  model.continuous_bias = address<const float>(continuous_bias, "continuous_bias", 16);
  model.kv_cache = address<void>(kv_cache, "kv_cache", 16);
  const StepOptions options = {device,       max_positions, capacity,  num_blocks,
                               cluster_size, max_slots,     timeout_us};
  return std::make_unique<Step>(model, step_layers, to_arrays(input), address<float>(output, "output", 4),
                                options);
}

py::dict facts(int ordinal) {
  const DeviceFacts found = device_facts(ordinal);
  py::dict result;
  if (!found.reason.empty()) result["reason"] = found.reason;
  if (found.name.empty()) return result;
  result["name"] = found.name;
  result["compute_capability"] = py::make_tuple(found.capability_major, found.capability_minor);
  result["num_sms"] = found.num_sms;
  result["shared_bytes_per_block"] = found.shared_bytes_per_block;
  result["cooperative_launch"] = found.cooperative_launch;
  return result;
}

}  // namespace
}  // namespace jat

PYBIND11_MODULE(JAT_MODULE, module) {
  using jat::Step;
  using namespace pybind11::literals;
#ifdef JAT_EMULATOR
  module.attr("DEVICE") = "cpu";
#else
  module.attr("DEVICE") = "cuda";
#endif
  module.attr("MAX_VALUES") = jat::kStepMaxValues;
  module.attr("PAGE_SIZE") = jat::kStepPageSize;
  module.attr("MAX_STEP_TOKENS") = jat::kStepRows;
  module.attr("REDUCTIONS_PER_LAYER") = jat::kReductionsPerLayer;
  module.def("device_facts", &jat::facts, "ordinal"_a = 0);
  py::class_<Step> step(module, "Step", py::module_local());  // several builds may be loaded together
  step.def(py::init(&jat::make_step), py::kw_only(), "hidden"_a, "num_heads"_a, "head_dim"_a, "inner"_a,
           "num_layers"_a, "max_positions"_a, "weight_dtype"_a, "layers"_a, "final_norm_weight"_a,
           "final_norm_bias"_a, "position_table"_a, "continuous_bias"_a, "kv_cache"_a, "num_pages"_a,
           "input"_a, "output"_a, "capacity"_a, "num_blocks"_a = 0, "cluster_size"_a = 0, "num_threads"_a = 0,
           "timeout_us"_a = 100000, "device"_a = 0, "max_slots"_a = 64)
      .def("run", &Step::run, "stream"_a = 0)
      .def(
          "bytes_per_step",
          [](const Step& s, int context_len) { return jat::bytes_per_step(s.model(), context_len); },
          "context_len"_a)
      .def_property(
          "timeout_us", [](Step& s) { return s.runner().timeout_us(); },
          [](Step& s, int64_t timeout_us) { s.runner().set_timeout_us(timeout_us); })
      .def_property_readonly("scratch_bytes", [](Step& s) { return s.runner().scratch_bytes(); })
      .def_property_readonly("max_active_clusters", [](Step& s) { return s.runner().max_active_clusters(); })
      .def_property_readonly("cooperative", [](Step& s) { return s.runner().is_cooperative(); })
      .def_property_readonly("shared_bytes", [](const Step& s) { return s.model().shared.bytes; })
      .def_property_readonly("num_blocks", [](const Step& s) { return s.model().num_blocks; })
      .def_property_readonly("cluster_size", [](const Step& s) { return s.model().cluster_size; })
      .def_property_readonly("num_threads", [](const Step& s) { return 32 * s.model().num_warps; })
      .def_property_readonly("num_slots", [](const Step& s) { return s.model().num_slots; })
      .def_property_readonly("slot_bytes", [](const Step& s) { return s.model().slot_bytes; })
      .def_property_readonly("num_grid_barriers",
                             [](const Step& s) { return jat::num_grid_barriers(s.model()); });
#ifdef JAT_EMULATOR
  step.def_property("missing_cluster", nullptr,
                    [](Step& s, int cluster) { s.runner().set_missing_cluster(cluster); })
      .def_property("seed", nullptr, [](Step& s, uint32_t seed) { s.runner().set_seed(seed); });
  using jat::EmulatedDevice;
  py::class_<EmulatedDevice>(module, "EmulatedDevice", py::module_local())
      .def_readwrite("num_sms", &EmulatedDevice::num_sms)
      .def_readwrite("max_blocks", &EmulatedDevice::max_blocks)
      .def_readwrite("memory_bytes", &EmulatedDevice::memory_bytes)
      .def_readwrite("refused_launches", &EmulatedDevice::refused_launches)
      .def_readwrite("hangs", &EmulatedDevice::hangs)
      .def_readwrite("allowed_shared_bytes", &EmulatedDevice::allowed_shared_bytes);
#if JAT_RECORD
  jat::emulator::record::bind(module);
#endif
  module.attr("device") = py::cast(&jat::emulated_device(), py::return_value_policy::reference);
#endif
#if JAT_TRACE == 1
  module.def("take_trace", [] {
    py::list events;
    for (const jat::TraceEvent& event : jat::take_trace())
      events.append(py::make_tuple(event.block, event.phase, event.time_ns));
    return events;
  });
#endif
}
