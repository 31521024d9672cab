// A model's step on a device: chooses the geometry, reads the inputs, starts the kernel and waits for it.
// Free of Python.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "step.h"

namespace jat {

// A step's inputs in memory of the host, read by each run. Shapes and units are those of StepInputs in
// jat_engine/backends/cuda/inputs.py.
struct InputArrays {
  const int32_t *query_start, *context_lens, *start_offsets, *page_table, *positions, *slot_mapping;
  const int64_t* source_ptrs;
  const int32_t *source_sizes, *value_starts;
  const float* values;
  const int64_t *head_ptrs, *head_bias_ptrs;
  const int32_t* head_sizes;
};

struct StepOptions {
  int device = 0;
  int max_positions = 0;                 // the longest context
  int capacity = 0;                      // most numbers of a prediction
  int num_blocks = 0, cluster_size = 0;  // 0: chosen; then JAT_CUDA_GEOMETRY may say
  int max_slots = 64;                    // of the ring
  int64_t timeout_us = 100000;           // of one wait on the device
};

class StepRunner {
 public:
  // model: sizes, type, weights, cache and num_warps; the rest is filled in. layers: as many as the model has.
  // output: float [capacity], in memory of the host. Throws std::invalid_argument for what does not fit, and
  // std::runtime_error for what this device cannot do.
  StepRunner(const StepModel& model, const std::vector<StepLayer>& layers, const InputArrays& input,
             float* output, const StepOptions& options);
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  // Starts a step behind what is on the stream. Returns "", or why it did not start. If the device refuses the
  // launch, the next geometries of the ladder are tried, now and in later steps.
  std::string start(int64_t stream);

  // Waits for the step, at most `slice`. Returns whether it has ended: then the prediction is in `output`, or
  // `reason` says why not, and the new tokens' keys and values are undefined.
  bool wait(std::chrono::nanoseconds slice, std::string& reason);

  const StepModel& model() const { return model_; }
  const DeviceFacts& facts() const { return facts_; }
  size_t scratch_bytes() const { return scratch_bytes_; }
  int max_active_clusters() const { return rungs_[rung_].max_clusters; }
  bool is_cooperative() const { return rungs_[rung_].cooperative; }
  int64_t timeout_us() const { return options_.timeout_us; }
  void set_timeout_us(int64_t timeout_us);
  // For tests on the CPU: the cluster that never runs, and the order of threads.
  void set_missing_cluster(int cluster) { missing_cluster_ = cluster; }
  void set_seed(uint32_t seed) { seed_ = seed; }

 private:
  // A geometry to try, and how to launch it.
  struct Rung {
    int num_clusters, cluster_size, max_clusters;
    bool cooperative;
  };

  void build_ladder();
  std::string allocate(const std::vector<StepLayer>& layers);
  void release();
  std::string read_input();
  std::string launch();
  std::string lay_out_model();
  void use_rung();
  bool has_answered(std::string& reason);

  const DeviceFacts facts_;
  const InputArrays arrays_;
  StepOptions options_;
  float* const output_;
  StepModel model_;
  StepInput input_ = {};
  std::vector<Rung> rungs_;
  size_t rung_ = 0;
  size_t scratch_bytes_ = 0;
  char* scratch_ = nullptr;
  void* layers_ = nullptr;  // on the device
  uint32_t* status_ = nullptr;
  uint32_t ticket_ = 0;
  bool dirty_ = false;  // a step has begun and has not ended well
  int64_t stream_ = 0;
  int64_t polls_ = 0;
  std::chrono::steady_clock::time_point begin_;
  int missing_cluster_ = -1;
  uint32_t seed_ = 0;
};

}  // namespace jat
