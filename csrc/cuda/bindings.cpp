// The Python modules jat_engine._cuda and, built for the CPU, _cuda_emulator. Free of torch headers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "device.h"
#include "layout.h"
#include "step.h"

#ifdef JAT_EMULATOR
#define JAT_MODULE _cuda_emulator
#else
#define JAT_MODULE _cuda
#endif

namespace py = pybind11;

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

// The arrays of a step in memory that the host can read: pinned memory has one address on both sides.
struct InputArrays {
  const int32_t *query_start, *context_lens, *start_offsets, *page_table, *positions, *slot_mapping;
  const int64_t* source_ptrs;
  const int32_t *source_sizes, *value_starts;
  const float* values;
  const int64_t *head_ptrs, *head_bias_ptrs;
  const int32_t* head_sizes;

  explicit InputArrays(const py::dict& fields) {
    const auto get = [&](const char* name, int alignment) {
      return address<const void>(fields, "input.", name, alignment);
    };
    const auto integers = [&](const char* name) { return static_cast<const int32_t*>(get(name, 4)); };
    const auto addresses = [&](const char* name) { return static_cast<const int64_t*>(get(name, 8)); };
    query_start = integers("query_start");
    context_lens = integers("context_lens");
    start_offsets = integers("start_offsets");
    page_table = integers("page_table");
    positions = integers("positions");
    slot_mapping = integers("slot_mapping");
    source_ptrs = addresses("source_ptrs");
    source_sizes = integers("source_sizes");
    value_starts = integers("value_starts");
    values = static_cast<const float*>(get("values", 4));
    head_ptrs = addresses("head_ptrs");
    head_bias_ptrs = addresses("head_bias_ptrs");
    head_sizes = integers("head_sizes");
  }
};

class Step {
 public:
  Step(int hidden, int num_heads, int head_dim, int inner, int num_layers, int max_positions,
       const std::string& weight_dtype, const py::list& layers, uintptr_t final_norm_weight,
       uintptr_t final_norm_bias, uintptr_t wpe, uintptr_t continuous_bias, uintptr_t kv_cache, int num_pages,
       const py::dict& input, uintptr_t output, int capacity, bool fixed_order, int num_blocks,
       int cluster_size, int num_threads, int64_t timeout_us, int device, int max_slots)
      : input_arrays_(input),
        device_(device),
        max_positions_(max_positions),
        capacity_(capacity),
        timeout_us_(timeout_us) {
    const DeviceFacts facts = device_facts(device);
    if (!facts.reason.empty()) throw std::runtime_error(facts.reason);
    const DeviceGuard guard(device);
    model_.hidden = hidden;
    model_.num_heads = num_heads;
    model_.head_dim = head_dim;
    model_.inner = inner;
    model_.num_layers = num_layers;
    model_.num_pages = num_pages;
    model_.type = to_type(weight_dtype);
    model_.fixed_order = fixed_order;
    expect(hidden >= 1 && capacity >= 1 && timeout_us >= 1 && max_slots >= 2,
           "hidden, capacity, timeout_us: expected at least 1; max_slots: at least 2");
    expect(num_threads >= 0 && num_threads % 32 == 0,
           "num_threads: expected a multiple of 32, got " + std::to_string(num_threads));
    model_.num_warps = num_threads > 0 ? num_threads / 32 : default_num_warps(hidden);
    choose_geometry(facts, num_blocks, cluster_size, max_slots);
    expect(py::len(layers) == static_cast<size_t>(num_layers),
           "layers: expected " + std::to_string(num_layers) + ", got " + std::to_string(py::len(layers)));
    for (int i = 0; i < num_layers; ++i) {
      host_layers_.push_back(to_layer(layers[i].cast<py::dict>(), i));
      model_.windows[i] = layers[i].cast<py::dict>()["window"].cast<int32_t>();
    }
    model_.layers = host_layers_.data();
    model_.final_norm_weight = address<const float>(final_norm_weight, "final_norm_weight", 16);
    model_.final_norm_bias = address<const float>(final_norm_bias, "final_norm_bias", 16);
    model_.position_table = address<const float>(wpe, "wpe", 4);
    model_.continuous_bias = address<const float>(continuous_bias, "continuous_bias", 4);
    model_.kv_cache = address<void>(kv_cache, "kv_cache", 16);
    output_ = address<float>(output, "output", 4);
    step_input_.predictions = static_cast<uint64_t*>(allocate_visible(8 * capacity));

    const size_t row = static_cast<size_t>(kStepRows) * hidden * sizeof(float);
    const size_t parts = fixed_order ? num_contributors(model_) * row : 0;
    scratch_bytes_ = sizeof(StepControl) + 3 * row + parts;
    scratch_ = static_cast<char*>(allocate_device(scratch_bytes_));
    status_ = static_cast<uint32_t*>(allocate_visible(64));
    if (scratch_ == nullptr || status_ == nullptr) {
      release();
      throw std::runtime_error("no device memory for " + std::to_string(scratch_bytes_) +
                               " bytes of scratch");
    }
    model_.control = reinterpret_cast<StepControl*>(scratch_);
    model_.sums = reinterpret_cast<float*>(scratch_ + sizeof(StepControl));
    model_.parts = reinterpret_cast<float*>(scratch_ + sizeof(StepControl) + 3 * row);
    step_input_.status = status_;
  }
  ~Step() { release(); }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  // Returns "" when the predictions are in `output`, else the reason; the new tokens' keys and values are
  // then undefined.
  std::string run(int64_t stream) {
    std::string reason = read_input();
    if (!reason.empty()) return reason;
    const py::gil_scoped_release nogil;
    const DeviceGuard guard(device_);
    if (dirty_) {
      // An unfinished step left its counters behind. They can be zeroed once it has ended.
      if (stream_state(stream, reason) == StreamState::kBusy) return "the step before is still running";
      if (!reason.empty()) return reason;
      zero_device(scratch_, scratch_bytes_, stream);
    }
    dirty_ = true;
    step_input_.ticket = ++ticket_ & 0x7fffffffu;
    step_input_.timeout_ns = static_cast<uint64_t>(timeout_us_) * 1000;
    reason = launch_step(model_, step_input_, stream, missing_cluster_, seed_);
    if (!reason.empty()) return reason;
    reason = wait(stream);
    dirty_ = !reason.empty();
    return reason;
  }

  int64_t bytes_per_step(int context_len) const { return jat::bytes_per_step(model_, context_len); }

  const StepModel& model() const { return model_; }
  size_t scratch_bytes() const { return scratch_bytes_; }
  int max_active_clusters() const { return max_clusters_; }
  void set_missing_cluster(int cluster) { missing_cluster_ = cluster; }
  int64_t timeout_us() const { return timeout_us_; }
  void set_timeout_us(int64_t timeout_us) {
    expect(timeout_us >= 1, "timeout_us: expected at least 1, got " + std::to_string(timeout_us));
    timeout_us_ = timeout_us;
  }
  void set_seed(uint32_t seed) { seed_ = seed; }

 private:
  // As many clusters as are resident together, of the size that keeps the most blocks busy.
  void choose_geometry(const DeviceFacts& facts, int num_blocks, int cluster_size, int max_slots) {
    std::string reason = "no cluster fits";
    int best_blocks = 0, best_size = 0;
    for (const int size : {8, 4, 2, 1}) {
      if (cluster_size == 0 && num_blocks % size != 0) continue;
      const int candidate = cluster_size > 0 ? cluster_size : size;
      model_.cluster_size = candidate;
      model_.num_blocks = num_blocks > 0 ? num_blocks : std::max(facts.num_sms / candidate, 1) * candidate;
      lay_out(model_, max_positions_, facts.shared_bytes_per_block, max_slots);
      max_clusters_ = jat::max_active_clusters(model_, reason);
      const int blocks = max_clusters_ * candidate;
      // A smaller cluster must gain an eighth, since each of its blocks has a larger part of the attention.
      if (blocks > best_blocks * 9 / 8) best_blocks = blocks, best_size = candidate;
      if (cluster_size > 0) break;
    }
    if (best_blocks == 0) throw std::runtime_error("max_active_clusters: " + reason);
    model_.cluster_size = best_size;
    max_clusters_ = best_blocks / best_size;
#ifndef JAT_EMULATOR
    expect(num_blocks <= best_blocks, "num_blocks: " + std::to_string(num_blocks) +
                                          " blocks are not resident " + "together; at most " +
                                          std::to_string(best_blocks) + " are");
#endif
    model_.num_blocks = num_blocks > 0 ? num_blocks : best_blocks;
    lay_out(model_, max_positions_, facts.shared_bytes_per_block, max_slots);
#ifndef JAT_EMULATOR
    // Another number of blocks has another layout, so the occupancy that was asked for above is not its own.
    max_clusters_ = jat::max_active_clusters(model_, reason);
    if (max_clusters_ * best_size < model_.num_blocks)
      throw std::runtime_error("max_active_clusters: " + std::to_string(max_clusters_) + " clusters of " +
                               std::to_string(best_size) + " blocks are resident together, " +
                               std::to_string(model_.num_blocks / best_size) + " are needed" +
                               (reason.empty() ? "" : "; " + reason));
#endif
  }

  // Copies the plan into the kernel's argument, so that the GPU never waits for the bus.
  std::string read_input() {
    const InputArrays& in = input_arrays_;
    StepInput& out = step_input_;
    const auto wrong = [](const char* field, const std::string& expected, int64_t got) {
      return std::string(field) + ": expected " + expected + ", got " + std::to_string(got);
    };
    const int rows = in.query_start[1] - in.query_start[0];
    if (in.query_start[0] != 0 || rows < 1 || rows > kStepRows)
      return wrong("query_start", "0 and 1 to 3", rows);
    const int context = in.context_lens[0], offset = in.start_offsets[0];
    if (context < 0 || context > max_positions_ - rows)
      return wrong("context_lens", "0 to " + std::to_string(max_positions_ - rows), context);
    if (offset < 0 || offset >= kStepPageSize) return wrong("start_offsets", "0 to 15", offset);
    const int pages = (offset + context + kStepPageSize - 1) / kStepPageSize;
    for (int page = 0; page < pages; ++page) {
      if (in.page_table[page] < 0 || in.page_table[page] >= model_.num_pages)
        return wrong("page_table", "0 to " + std::to_string(model_.num_pages - 1), in.page_table[page]);
      out.page_table[page] = in.page_table[page];
    }
    int num_values = 0;
    for (int row = 0; row < rows; ++row) {
      if (in.positions[row] < 0 || in.positions[row] >= max_positions_)
        return wrong("positions", "0 to " + std::to_string(max_positions_ - 1), in.positions[row]);
      if (in.slot_mapping[row] < -1 || in.slot_mapping[row] >= model_.num_pages * kStepPageSize)
        return wrong("slot_mapping", "-1 to " + std::to_string(model_.num_pages * kStepPageSize - 1),
                     in.slot_mapping[row]);
      const int size = in.source_ptrs[row] != 0 ? in.source_sizes[row] : 0;
      if (size < 0 || num_values + size > kStepMaxValues)
        return wrong("source_sizes", "at most " + std::to_string(kStepMaxValues) + " together",
                     num_values + size);
      out.positions[row] = in.positions[row];
      out.slots[row] = in.slot_mapping[row];
      out.sources[row] = reinterpret_cast<const float*>(in.source_ptrs[row]);
      out.source_sizes[row] = size;
      out.value_starts[row] = num_values;
      if (size > 0)
        std::memcpy(out.values + num_values, in.values + in.value_starts[row], size * sizeof(float));
      num_values += size;
    }
    if (in.head_sizes[0] < 1 || in.head_sizes[0] > capacity_)
      return wrong("head_sizes", "1 to " + std::to_string(capacity_), in.head_sizes[0]);
    if (in.head_ptrs[0] == 0 || in.head_ptrs[0] % 16 != 0)
      return wrong("head_ptrs", "an address that is a multiple of 16", in.head_ptrs[0]);
    out.num_rows = rows;
    out.context_len = context;
    out.start_offset = offset;
    out.head_size = in.head_sizes[0];
    out.head_rows = reinterpret_cast<const float*>(in.head_ptrs[0]);
    out.head_bias = reinterpret_cast<const float*>(in.head_bias_ptrs[0]);
    return "";
  }

  // Waits for the status word. The kernel bounds its own waits; this bound is for a kernel that never started
  // or died.
  std::string wait(int64_t stream) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    const auto bound =
        std::chrono::microseconds(timeout_us_ * (num_grid_barriers(model_) + 2)) + std::chrono::seconds(5);
    const uint32_t ticket = step_input_.ticket;
    std::string reason;
    for (int64_t polls = 1;; ++polls) {
      const uint32_t status = __atomic_load_n(status_, __ATOMIC_ACQUIRE);
      bool all = true;
      for (int i = 0; i < step_input_.head_size; ++i) {
        const uint64_t pair = __atomic_load_n(step_input_.predictions + i, __ATOMIC_RELAXED);
        if (pair >> 32 != ticket) all = false;
        const uint32_t bits = static_cast<uint32_t>(pair);
        std::memcpy(output_ + i, &bits, 4);
      }
      if (all) return "";
      if (status == ticket)
        return "timed out: blocks waited for others for more than " + std::to_string(timeout_us_) + " us";
      pause();
      if (polls % 4096 != 0) continue;
      const StreamState state = stream_state(stream, reason);
      if (state == StreamState::kFailed) return reason;
      if (state == StreamState::kIdle && __atomic_load_n(status_, __ATOMIC_ACQUIRE) != ticket)
        return "timed out: the launch ended and not all of its blocks were there";
      if (Clock::now() - begin > bound) return "timed out: no answer from the device";
    }
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void release() {
    const DeviceGuard guard(device_);
    if (scratch_ != nullptr) free_device(scratch_);
    if (status_ != nullptr) free_visible(status_);
    scratch_ = nullptr;
    status_ = nullptr;
  }

  StepModel model_ = {};
  StepInput step_input_ = {};
  std::vector<StepLayer> host_layers_;
  float* output_ = nullptr;
  InputArrays input_arrays_;
  int device_, max_positions_, capacity_;
  int64_t timeout_us_;
  int max_clusters_ = 0;
  size_t scratch_bytes_ = 0;
  char* scratch_ = nullptr;
  uint32_t* status_ = nullptr;
  uint32_t ticket_ = 0;
  bool dirty_ = false;
  int missing_cluster_ = -1;
  uint32_t seed_ = 0;
};

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
  module.attr("CLUSTER_BARRIERS_PER_HEAD") = jat::kClusterBarriersPerHead;
  module.def("device_facts", &jat::facts, "ordinal"_a = 0);
  py::class_<Step> step(module, "Step");
  step.def(py::init<int, int, int, int, int, int, const std::string&, const py::list&, uintptr_t, uintptr_t,
                    uintptr_t, uintptr_t, uintptr_t, int, const py::dict&, uintptr_t, int, bool, int, int,
                    int, int64_t, int, int>(),
           py::kw_only(), "hidden"_a, "num_heads"_a, "head_dim"_a, "inner"_a, "num_layers"_a,
           "max_positions"_a, "weight_dtype"_a, "layers"_a, "final_norm_weight"_a, "final_norm_bias"_a,
           "wpe"_a, "continuous_bias"_a, "kv_cache"_a, "num_pages"_a, "input"_a, "output"_a, "capacity"_a,
           "fixed_order"_a = false, "num_blocks"_a = 0, "cluster_size"_a = 0, "num_threads"_a = 0,
           "timeout_us"_a = 100000, "device"_a = 0, "max_slots"_a = 64)
      .def("run", &Step::run, "stream"_a = 0)
      .def("bytes_per_step", &Step::bytes_per_step, "context_len"_a)
      .def_property("timeout_us", &Step::timeout_us, &Step::set_timeout_us)
      .def_property_readonly("scratch_bytes", &Step::scratch_bytes)
      .def_property_readonly("max_active_clusters", &Step::max_active_clusters)
      .def_property_readonly("shared_bytes", [](const Step& s) { return s.model().shared.bytes; })
      .def_property_readonly("num_blocks", [](const Step& s) { return s.model().num_blocks; })
      .def_property_readonly("cluster_size", [](const Step& s) { return s.model().cluster_size; })
      .def_property_readonly("num_threads", [](const Step& s) { return 32 * s.model().num_warps; })
      .def_property_readonly("num_slots", [](const Step& s) { return s.model().num_slots; })
      .def_property_readonly("slot_bytes", [](const Step& s) { return s.model().slot_bytes; })
      .def_property_readonly("num_grid_barriers", [](const Step& s) { return jat::num_grid_barriers(s.model()); });
#ifdef JAT_EMULATOR
  step.def_property("missing_cluster", nullptr, &Step::set_missing_cluster)
      .def_property("seed", nullptr, &Step::set_seed);
#endif
}
