// The persistent kernel of the published size in bfloat16 alone, with markers at its phases, for the clock.
#define JAT_TRACE 2
#include "step.cuh"

template __global__ void jat::step_kernel<__nv_bfloat16, jat::kPublishedHidden>(JAT_ARGUMENT jat::StepModel,
                                                                                         JAT_ARGUMENT jat::StepInput);
