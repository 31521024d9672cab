#include "discrete_encoder.h"

#include <cstring>

namespace jat {

void DiscreteEncoder::encode(Model& model, const Integers* observations, int num_observations, float* out) {
  const size_t columns = linear_->columns();
  if (x_.size() < num_observations * columns) x_.resize(num_observations * columns);
  float* x = x_.data();
  const auto append = [&](const int64_t* integers, int count) {
    for (int i = 0; i < count; ++i, x += width_)
      std::memcpy(x, features_.data() + integers[i] * width_, sizeof(float) * width_);
  };
  for (int i = 0; i < num_observations; ++i) {
    append(observations[i].values, observations[i].num_values);
    append(observations[i].mission, observations[i].num_mission);
  }
  model.apply(*linear_, x_.data(), num_observations, out);
  for (int i = 0; i < num_observations; ++i)
    out[static_cast<size_t>(i) * linear_->padded_rows() + model.hidden_size() - 1] = observations[i].reward;
}

}  // namespace jat
