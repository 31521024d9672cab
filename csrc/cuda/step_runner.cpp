#include "step_runner.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "layout.h"

namespace jat {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPollsPerQuery = 4096;             // polls of memory between two questions to the driver
constexpr std::chrono::seconds kLaunchBound{5};  // until a kernel runs
constexpr int64_t kMostTimeoutUs = 3600000000;   // an hour; sums of some tens of them fit in 64 bits
constexpr size_t kStatusBytes = 64;              // a line of its own

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Reads JAT_CUDA_GEOMETRY, such as 15x8. Returns whether it is set.
bool geometry_of_environment(int& num_clusters, int& cluster_size) {
  const char* text = std::getenv("JAT_CUDA_GEOMETRY");
  if (text == nullptr || *text == 0) return false;
  char rest = 0;
  const bool read = std::sscanf(text, "%4dx%2d%c", &num_clusters, &cluster_size, &rest) == 2;
  expect(read && num_clusters >= 1 && cluster_size >= 1 && cluster_size <= kStepMaxClusterSize,
         std::string("JAT_CUDA_GEOMETRY: expected CLUSTERSxSIZE with a size of 1 to 16, such as 15x8, got ") +
             text + "; unset it to let the engine choose");
  return true;
}

}  // namespace

StepRunner::StepRunner(const StepModel& model, const std::vector<StepLayer>& layers, const InputArrays& input,
                       float* output, const StepOptions& options)
    : facts_(device_facts(options.device)),
      arrays_(input),
      options_(options),
      output_(output),
      model_(model) {
  expect(options.capacity >= 1, "capacity: expected at least 1, got " + std::to_string(options.capacity));
  expect(options.max_slots >= 2, "max_slots: expected at least 2, got " + std::to_string(options.max_slots));
  set_timeout_us(options.timeout_us);
  if (!facts_.reason.empty()) throw std::runtime_error(facts_.reason);
  const DeviceGuard guard(options.device);
  build_ladder();
  const std::string reason = allocate(layers);
  if (!reason.empty()) {
    release();
    throw std::runtime_error(reason);
  }
}

StepRunner::~StepRunner() { release(); }

void StepRunner::set_timeout_us(int64_t timeout_us) {
  expect(
      timeout_us >= 1 && timeout_us <= kMostTimeoutUs,
      "timeout_us: expected 1 to " + std::to_string(kMostTimeoutUs) + ", got " + std::to_string(timeout_us));
  options_.timeout_us = timeout_us;
}

// ---- geometry

// Every geometry of the ladder is laid out and resident by what the device says. First the size of clusters
// that keeps the most blocks busy, with as many clusters as fit, then fewer, then other sizes. Each is tried
// as a cooperative launch, which fails instead of waiting for blocks that do not fit, and then as a plain one:
// a driver may refuse cooperative launches of clusters, and every wait of the kernel is bounded.
void StepRunner::build_ladder() {
  int num_clusters = 0, cluster_size = options_.cluster_size;
  if (options_.num_blocks > 0) {
    if (cluster_size == 0)
      for (cluster_size = 8; options_.num_blocks % cluster_size != 0;) cluster_size /= 2;
    num_clusters = std::max(options_.num_blocks / cluster_size, 1);
    expect(num_clusters * cluster_size == options_.num_blocks,
           "num_blocks: expected a multiple of cluster_size " + std::to_string(cluster_size) + ", got " +
               std::to_string(options_.num_blocks));
  } else if (cluster_size == 0) {
    geometry_of_environment(num_clusters, cluster_size);
  }
  const bool is_fixed = num_clusters > 0;

  // The largest layout of each size, and what is resident of it.
  const std::string none = "no cluster is resident with its shared memory";
  std::vector<Rung> sizes;
  std::string reason, too_large;
  for (const int size : cluster_size > 0 ? std::vector<int>{cluster_size} : std::vector<int>{8, 4, 2, 1}) {
    model_.cluster_size = size;
    model_.num_blocks = (is_fixed ? num_clusters : std::max(facts_.num_sms / size, 1)) * size;
    try {
      lay_out(model_, options_.max_positions, facts_.shared_bytes_per_block, options_.max_slots);
    } catch (const std::invalid_argument& error) {
      too_large = error.what();
      continue;
    }
    const int resident = jat::max_active_clusters(model_, reason);
    if (is_fixed && resident < num_clusters)
      throw std::runtime_error("geometry " + std::to_string(num_clusters) + "x" + std::to_string(size) +
                               ": " + std::to_string(resident) + " clusters of " + std::to_string(size) +
                               " blocks are resident together, " + std::to_string(num_clusters) +
                               " are needed" + (reason.empty() ? "" : "; " + reason));
    if (resident > 0) sizes.push_back({is_fixed ? num_clusters : resident, size, resident, false});
  }
  if (sizes.empty() && !too_large.empty()) throw std::invalid_argument(too_large);
  if (sizes.empty()) throw std::runtime_error("max_active_clusters: " + (reason.empty() ? none : reason));

  // A smaller cluster must gain an eighth, since each of its blocks has a larger part of the attention.
  const auto blocks = [](const Rung& rung) { return rung.num_clusters * rung.cluster_size; };
  auto best = sizes.begin();
  for (auto size = sizes.begin(); size != sizes.end(); ++size)
    if (blocks(*size) > blocks(*best) * 9 / 8) best = size;
  std::rotate(sizes.begin(), best, best + 1);

  for (const Rung& size : sizes) {
    const int most = size.num_clusters;
    int before = 0;
    for (const int clusters : {most, most - 1, most / 2}) {
      if (clusters < 1 || clusters == before || (is_fixed && clusters != most)) continue;
      before = clusters;
      // Fewer blocks may need more shared memory each, which the device must be asked for, too.
      model_.cluster_size = size.cluster_size;
      model_.num_blocks = clusters * size.cluster_size;
      reason = lay_out_model();
      if (!reason.empty() || jat::max_active_clusters(model_, reason) < clusters) continue;
      if (facts_.cooperative_launch) rungs_.push_back({clusters, size.cluster_size, size.max_clusters, true});
      rungs_.push_back({clusters, size.cluster_size, size.max_clusters, false});
    }
  }
  if (rungs_.empty()) throw std::runtime_error("max_active_clusters: " + (reason.empty() ? none : reason));
  use_rung();
}

// Lays the current geometry of `model_` out. Returns "", or why it cannot be.
std::string StepRunner::lay_out_model() {
  try {
    lay_out(model_, options_.max_positions, facts_.shared_bytes_per_block, options_.max_slots);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

// Lays the current rung out, which has been done before.
void StepRunner::use_rung() {
  const Rung& rung = rungs_[rung_];
  model_.cluster_size = rung.cluster_size;
  model_.num_blocks = rung.num_clusters * rung.cluster_size;
  lay_out_model();
}

// ---- memory

// Returns "", or why there is no memory.
std::string StepRunner::allocate(const std::vector<StepLayer>& layers) {
  int64_t most_packet_bytes = 0;
  for (const Rung& rung : rungs_) {
    StepModel model = model_;
    model.num_blocks = rung.num_clusters * rung.cluster_size;
    model.cluster_size = rung.cluster_size;
    most_packet_bytes = std::max(most_packet_bytes, packet_bytes(model));
  }
  const size_t layer_bytes = layers.size() * sizeof(StepLayer);
  scratch_bytes_ = sizeof(StepControl) + most_packet_bytes;

  std::string reason;
  scratch_ = static_cast<char*>(allocate_device(scratch_bytes_, reason));
  if (reason.empty()) layers_ = allocate_device(layer_bytes, reason);
  if (reason.empty()) reason = copy_to_device(layers_, layers.data(), layer_bytes);
  if (reason.empty())
    status_ =
        static_cast<uint32_t*>(allocate_visible(kStatusBytes + options_.capacity * sizeof(uint64_t), reason));
  if (!reason.empty())
    return "no memory for " + std::to_string(scratch_bytes_) + " bytes of scratch and " +
           std::to_string(options_.capacity) + " predictions: " + reason;
  model_.control = reinterpret_cast<StepControl*>(scratch_);
  model_.packets = reinterpret_cast<StepPacket*>(scratch_ + sizeof(StepControl));
  model_.layers = static_cast<const StepLayer*>(layers_);
  input_.status = status_;
  input_.predictions = reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(status_) + kStatusBytes);
  return "";
}

void StepRunner::release() {
  const DeviceGuard guard(options_.device);
  if (scratch_ != nullptr) free_device(scratch_);
  if (layers_ != nullptr) free_device(layers_);
  if (status_ != nullptr) free_visible(status_);
  scratch_ = nullptr;
  layers_ = nullptr;
  status_ = nullptr;
}

// ---- a step

std::string StepRunner::start(int64_t stream) {
  std::string reason = read_input();
  if (!reason.empty()) return reason;
  const DeviceGuard guard(options_.device);
  if (dirty_) {
    // An unfinished step left its counters behind. They can be zeroed once it has ended.
    const StreamState state = stream_state(stream_, reason);
    if (state == StreamState::kBusy) return "the step before is still running";
    if (state == StreamState::kFailed) return reason;
    reason = zero_device(scratch_, scratch_bytes_, stream);
    if (!reason.empty()) return reason;
  }
  dirty_ = true;
  stream_ = stream;
  ticket_ = ticket_ % 0xffffffffu + 1;  // never 0, which memory holds at first
  input_.ticket = ticket_;
  input_.timeout_ns = static_cast<uint64_t>(options_.timeout_us) * 1000;
  begin_ = Clock::now();
  polls_ = 0;
  return launch();
}

// Launches the current rung or, where it is refused, the first that is not. Returns the first reason if all
// are refused; the next step begins at the top again.
std::string StepRunner::launch() {
  std::string first_reason;
  for (;;) {
    const std::string reason =
        launch_step({model_, input_, stream_, rungs_[rung_].cooperative, missing_cluster_, seed_});
    if (reason.empty()) return "";
    if (first_reason.empty()) first_reason = reason;
    rung_ = (rung_ + 1) % rungs_.size();
    use_rung();
    if (rung_ == 0) return first_reason;
  }
}

bool StepRunner::wait(std::chrono::nanoseconds slice, std::string& reason) {
  // The kernel bounds its own waits; this bound is for a kernel that never started or died.
  const auto bound =
      std::chrono::microseconds(options_.timeout_us * (num_grid_barriers(model_) + 2)) + kLaunchBound;
  const Clock::time_point slice_end = Clock::now() + slice;
  const DeviceGuard guard(options_.device);
  while (!has_answered(reason)) {
    pause();
    if (++polls_ % kPollsPerQuery != 0) continue;
    const StreamState state = stream_state(stream_, reason);
    if (state == StreamState::kFailed) return true;
    if (state == StreamState::kIdle && !has_answered(reason))
      reason = "timed out: the launch ended and not all of its blocks were there";
    const Clock::time_point now = Clock::now();
    if (reason.empty() && now - begin_ > bound) reason = "timed out: no answer from the device";
    if (!reason.empty()) return true;
    if (now > slice_end) return false;
  }
  dirty_ = !reason.empty();
  return true;
}

// Whether all predictions have come, which are then in `output`, or the kernel has given up.
bool StepRunner::has_answered(std::string& reason) {
  // Usually the last block is the last to answer.
  for (int i = input_.head_size - 1; i >= 0; --i) {
    const uint64_t pair = __atomic_load_n(input_.predictions + i, __ATOMIC_RELAXED);
    if (pair >> 32 != ticket_) {
      if (__atomic_load_n(status_, __ATOMIC_ACQUIRE) != ticket_) return false;
      reason =
          "timed out: blocks waited for others for more than " + std::to_string(options_.timeout_us) + " us";
      return true;
    }
    const auto bits = static_cast<uint32_t>(pair);
    std::memcpy(output_ + i, &bits, sizeof bits);
  }
  return true;
}

// Copies the plan into the kernel's argument, so that the GPU never waits for the bus. Returns "", or which
// field is wrong.
std::string StepRunner::read_input() {
  const InputArrays& in = arrays_;
  StepInput& out = input_;
  const auto wrong = [](const char* field, const std::string& expected, int64_t got) {
    return std::string(field) + ": expected " + expected + ", got " + std::to_string(got);
  };
  const int rows = in.query_start[1] - in.query_start[0];
  if (in.query_start[0] != 0 || rows < 1 || rows > kStepRows)
    return wrong("query_start", "0 and 1 to 3", rows);
  const int context = in.context_lens[0], offset = in.start_offsets[0];
  if (context < 0 || context > options_.max_positions - rows)
    return wrong("context_lens", "0 to " + std::to_string(options_.max_positions - rows), context);
  if (offset < 0 || offset >= kStepPageSize) return wrong("start_offsets", "0 to 15", offset);
  const int pages = (offset + context + kStepPageSize - 1) / kStepPageSize;
  for (int page = 0; page < pages; ++page) {
    if (in.page_table[page] < 0 || in.page_table[page] >= model_.num_pages)
      return wrong("page_table", "0 to " + std::to_string(model_.num_pages - 1), in.page_table[page]);
    out.page_table[page] = in.page_table[page];
  }
  int num_values = 0;
  for (int row = 0; row < rows; ++row) {
    if (in.positions[row] < 0 || in.positions[row] >= options_.max_positions)
      return wrong("positions", "0 to " + std::to_string(options_.max_positions - 1), in.positions[row]);
    if (in.slot_mapping[row] < -1 || in.slot_mapping[row] >= model_.num_pages * kStepPageSize)
      return wrong("slot_mapping", "-1 to " + std::to_string(model_.num_pages * kStepPageSize - 1),
                   in.slot_mapping[row]);
    if (in.source_ptrs[row] % 16 != 0)
      return wrong("source_ptrs", "0 or an address that is a multiple of 16", in.source_ptrs[row]);
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
  if (in.head_sizes[0] < 1 || in.head_sizes[0] > options_.capacity)
    return wrong("head_sizes", "1 to " + std::to_string(options_.capacity), in.head_sizes[0]);
  if (in.head_ptrs[0] == 0 || in.head_ptrs[0] % 16 != 0)
    return wrong("head_ptrs", "an address that is a multiple of 16", in.head_ptrs[0]);
  if (in.head_bias_ptrs[0] % 4 != 0)
    return wrong("head_bias_ptrs", "0 or an address that is a multiple of 4", in.head_bias_ptrs[0]);
  out.num_rows = rows;
  out.context_len = context;
  out.start_offset = offset;
  out.head_size = in.head_sizes[0];
  out.head_rows = reinterpret_cast<const float*>(in.head_ptrs[0]);
  out.head_bias = reinterpret_cast<const float*>(in.head_bias_ptrs[0]);
  return "";
}

}  // namespace jat
