// Which instantiation of the kernel a model takes.
#pragma once

#include <utility>

#include "step.h"

namespace jat {

constexpr int kPublishedHidden = 768;

// Calls visit(W, kTiles, kPairs) as template arguments: loops are unrolled for the published size.
template <typename W, typename Visit>
decltype(auto) dispatch_size(const StepModel& model, Visit&& visit) {
  constexpr int kTiles = kPublishedHidden * static_cast<int>(sizeof(W)) / (32 * 16);
  if (model.hidden == kPublishedHidden && model.num_warps == kStepMaxWarps)
    return visit.template operator()<W, kTiles, kPublishedHidden / (64 * kStepMaxWarps)>();
  return visit.template operator()<W, 0, kStepMaxPairs>();
}

template <typename Float32, typename BFloat16, typename Float16, typename Visit>
decltype(auto) dispatch(const StepModel& model, Visit&& visit) {
  switch (model.type) {
    case StepType::kBFloat16:
      return dispatch_size<BFloat16>(model, std::forward<Visit>(visit));
    case StepType::kFloat16:
      return dispatch_size<Float16>(model, std::forward<Visit>(visit));
    default:
      return dispatch_size<Float32>(model, std::forward<Visit>(visit));
  }
}

}  // namespace jat
