// Chooses the instantiation of the kernel for a model.
#pragma once

#include <utility>

#include "step.h"

namespace jat {

// Calls visit<W, kHidden>(); kHidden is 0 for sizes without kernels of their own.
template <typename W, typename Visit>
decltype(auto) dispatch_size(const StepModel& model, Visit&& visit) {
  if (model.hidden == kPublishedHidden && model.head_dim == kPublishedHeadDim &&
      model.num_warps == kStepMaxWarps && model.cluster_size == kPublishedClusterSize)
    return visit.template operator()<W, kPublishedHidden>();
  return visit.template operator()<W, 0>();
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
