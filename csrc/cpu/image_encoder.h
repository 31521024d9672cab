// Frames of Atari -> embeddings: three convolutions with normalisation and channel gates, then a linear
// layer.
#pragma once

#include <memory>
#include <vector>

#include "model.h"

namespace jat {

class ImageEncoder {
 public:
  // weight: [out_channels, in_channels, 3, 3]. A bias is not needed: normalisation takes it out again.
  // gate_in: [out_channels / 8, out_channels], gate_out: [out_channels, out_channels / 8].
  void add_stage(int in_channels, int out_channels, int in_size, const float* weight, const float* gate_in,
                 const float* gate_out);
  // Columns in the order of pixels, then channels.
  void set_linear(std::shared_ptr<Linear> linear) { linear_ = std::move(linear); }

  // frames: [num_frames] of [size, size, channels]; out: [num_frames, padded_rows].
  void encode(Model& model, const uint8_t* const* frames, int num_frames, float* out);
  // Stages that follow each other, and a linear layer of what the last one gives.
  bool is_complete() const;
  int padded_rows() const { return linear_->padded_rows(); }
  size_t frame_bytes() const {
    const ConvView& view = stages_.front().view;
    return static_cast<size_t>(view.in_size) * view.in_size * view.in_channels;
  }

 private:
  struct Stage {
    ConvView view;
    std::vector<float> weight, gate_in, gate_out;
    std::vector<float> in, out;  // of each thread: padded input, output
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
  std::vector<float> features_;  // of all frames
};

}  // namespace jat
