// The kernel for the CPU: the same source, executed by runtime.cpp.
#include "../step.cuh"

#include "../device.h"
#include "../dispatch.h"
#include "device.h"

namespace jat {

namespace {

#ifdef JAT_ONLY_FLOAT32  // a third of the time to compile
using Half = float;
using BHalf = float;
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

}  // namespace

std::string launch_step(const StepLaunch& launch) {
  if (std::string refusal = next_refusal(); !refusal.empty()) return refusal;
  if (emulated_device().hangs) return "";
  const StepModel& model = launch.model;
  const Arguments arguments = {model, launch.input};
  const emulator::Geometry geometry = {model.num_blocks,           model.cluster_size,
                                       32 * (model.num_warps + 1), static_cast<size_t>(model.shared.bytes),
                                       launch.missing_cluster,     launch.seed};
  return emulator::launch(geometry, dispatch<float, BHalf, Half>(model, Kernel{}), &arguments);
}

}  // namespace jat
