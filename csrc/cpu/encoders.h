// Observations that need more than one linear layer: frames of Atari and integers of BabyAI -> embeddings.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

namespace jat {

// Frames of Atari: three convolutions, each with normalisation, leaky ReLU and channel gates, then a linear
// layer.
class ImageEncoder {
 public:
  // weight: [out_channels, in_channels, 3, 3]. No bias: the normalisation would take it out again.
  // gate_in: [out_channels / 8, out_channels], gate_out: [out_channels, out_channels / 8].
  void add_stage(int in_channels, int out_channels, int in_size, const float* weight, const float* gate_in,
                 const float* gate_out);

  // Its columns are ordered by pixel, then by channel.
  void set_linear(std::shared_ptr<Linear> linear) { linear_ = std::move(linear); }

  // frames: [num_frames] of [size, size, channels]; out: [num_frames, padded_rows].
  void encode(Model& model, const uint8_t* const* frames, int num_frames, float* out);

  bool has_linear() const { return linear_ != nullptr; }

  // Each stage takes what the one before gives, and the linear layer what the last one gives.
  bool is_complete() const;

  int padded_rows() const { return linear_->padded_rows(); }
  const ConvView& input() const { return stages_.front().view; }  // [in_size, in_size, in_channels]
  size_t frame_bytes() const {
    return static_cast<size_t>(input().in_size) * input().in_size * input().in_channels;
  }

 private:
  struct Stage {
    ConvView view;
    std::vector<float> weight, gate_in, gate_out;
    std::vector<float> in, out;  // scratch of each thread: padded input, output

    size_t in_floats() const {
      return static_cast<size_t>(view.in_size + 2) * (view.in_size + 2) * view.in_channels;
    }
    size_t out_floats() const {
      return static_cast<size_t>(view.out_size) * view.out_size * view.out_channels;
    }
  };

  void reserve(int num_threads, int num_frames);
  void convolve(const Kernels& kernels, const uint8_t* frame, int thread, float* features);
  static void gate(const Stage& stage, const float* means, float* gates);

  std::vector<Stage> stages_;
  std::shared_ptr<Linear> linear_;
  std::vector<float> features_;  // [num_frames, out_floats() of the last stage]
};

// One discrete observation: its integers, then its mission's tokens.
struct Integers {
  const int64_t* values;
  int num_values;
  const int64_t* mission;  // or null
  int num_mission;
  float reward;
};

// Integers of BabyAI: a row of a table for each integer, then a linear layer of all rows.
class DiscreteEncoder {
 public:
  // features: [vocab_size, width]; linear: [hidden_size, num_integers * width], its last row zero: the reward
  // takes that place.
  DiscreteEncoder(std::vector<float> features, int width, std::shared_ptr<Linear> linear)
      : features_(std::move(features)), width_(width), linear_(std::move(linear)) {}

  int num_integers() const { return linear_->columns() / width_; }
  int64_t vocab_size() const { return static_cast<int64_t>(features_.size()) / width_; }
  int padded_rows() const { return linear_->padded_rows(); }

  // out: [num_observations, padded_rows]; element hidden_size - 1 is the reward.
  void encode(Model& model, const Integers* observations, int num_observations, float* out);

 private:
  std::vector<float> features_;
  int width_;
  std::shared_ptr<Linear> linear_;
  std::vector<float> x_;  // scratch: [num_observations, num_integers * width]
};

}  // namespace jat
