// Integers of BabyAI -> embeddings: a row of a table for each integer, then a linear layer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

namespace jat {

// One discrete observation: its integers, then its mission's tokens.
struct Integers {
  const int64_t* values;
  int num_values;
  const int64_t* mission;  // or null
  int num_mission;
  float reward;
};

class DiscreteEncoder {
 public:
  // features: [vocab_size, width]; linear: [hidden_size, num_integers * width], its last row, the reward's,
  // zero
  DiscreteEncoder(std::vector<float> features, int width, std::shared_ptr<Linear> linear)
      : features_(std::move(features)), width_(width), linear_(std::move(linear)) {}

  int num_integers() const { return linear_->columns() / width_; }
  int64_t vocab_size() const { return static_cast<int64_t>(features_.size()) / width_; }
  int padded_rows() const { return linear_->padded_rows(); }

  // out: [num_observations, padded_rows]; the reward is the last feature of the hidden size.
  void encode(Model& model, const Integers* observations, int num_observations, float* out);

 private:
  std::vector<float> features_;
  int width_;
  std::shared_ptr<Linear> linear_;
  std::vector<float> x_;
};

}  // namespace jat
