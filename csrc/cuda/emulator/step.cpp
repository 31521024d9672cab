// The kernel for the CPU: the same source, executed by runtime.cpp.
#include "../step.cuh"

#include "../device.h"
#include "../dispatch.h"
#include "../layout.h"
#include "device.h"
#include "record.h"

namespace jat {

namespace {

#ifdef JAT_ONLY_FLOAT32  // a third of the time to compile
using Half = float;
using BHalf = float;
#elif JAT_RECORD  // both 16-bit types do the same
using Half = BFloat16;
using BHalf = BFloat16;
#else
using Half = Float16;
using BHalf = BFloat16;
#endif

struct Arguments {
  const StepModel& model;
  const StepInput& input;
};

struct Kernel {
  template <typename W, int kHidden>
  auto operator()() const {
    return +[](const void* argument) {
      const auto* arguments = static_cast<const Arguments*>(argument);
      step_block<W, kHidden>(arguments->model, arguments->input);
    };
  }
};

#if JAT_RECORD
// Memory of the device that a step writes.
std::vector<emulator::record::Space> spaces_of(const StepLaunch& launch) {
  const StepModel& model = launch.model;
  const auto space = [](const std::string& name, const void* begin, size_t bytes, bool has_packets = false) {
    return emulator::record::Space{name, static_cast<const char*>(begin), bytes, has_packets};
  };
  const size_t tokens = static_cast<size_t>(model.num_layers) * model.num_pages * kStepPageSize;
  return {space("the counters", model.control, sizeof(StepControl)),
          space("the packets", model.packets, packet_bytes(model), true),
          space("the KV cache", model.kv_cache, tokens * 2 * model.hidden * type_bytes(model.type)),
          space("the predictions", launch.input.predictions, launch.input.head_size * sizeof(uint64_t))};
}
#endif

}  // namespace

std::string launch_step(const StepLaunch& launch) {
  if (std::string refusal = next_refusal(); !refusal.empty()) return refusal;
  if (emulated_device().hangs) return "";
  const StepModel& model = launch.model;
  if (model.shared.bytes > emulated_device().allowed_shared_bytes)
    return "more shared memory than is allowed";
  const Arguments arguments = {model, launch.input};
  const emulator::Geometry geometry = {model.num_blocks,           model.cluster_size,
                                       32 * (model.num_warps + 1), static_cast<size_t>(model.shared.bytes),
                                       launch.missing_cluster,     launch.seed};
#if JAT_RECORD
  emulator::record::request(spaces_of(launch));
#endif
  return emulator::launch(geometry, dispatch<float, BHalf, Half>(model, Kernel{}), &arguments);
}

}  // namespace jat
