#include "encoders.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace jat {

// ---- frames

void ImageEncoder::add_stage(int in_channels, int out_channels, int in_size, const float* weight,
                             const float* gate_in, const float* gate_out) {
  Stage stage;
  // [out, in, 3, 3] -> [out / 16, 3, 3, in, 16]
  stage.weight.resize(static_cast<size_t>(out_channels) * in_channels * 9);
  for (int o = 0; o < out_channels; ++o)
    for (int c = 0; c < in_channels; ++c)
      for (int k = 0; k < 9; ++k)
        stage.weight[((static_cast<size_t>(o / kBlockRows) * 9 + k) * in_channels + c) * kBlockRows +
                     o % kBlockRows] = weight[(static_cast<size_t>(o) * in_channels + c) * 9 + k];

  const size_t gate_size = static_cast<size_t>(out_channels / 8) * out_channels;
  stage.gate_in.assign(gate_in, gate_in + gate_size);
  stage.gate_out.assign(gate_out, gate_out + gate_size);
  stage.view = {in_channels, out_channels, in_size, (in_size + 1) / 2, nullptr};
  stages_.push_back(std::move(stage));
  stages_.back().view.weight = stages_.back().weight.data();
}

bool ImageEncoder::is_complete() const {
  for (size_t s = 1; s < stages_.size(); ++s) {
    const ConvView &before = stages_[s - 1].view, &here = stages_[s].view;
    if (here.in_channels != before.out_channels || here.in_size != before.out_size) return false;
  }
  return linear_ && !stages_.empty() && linear_->columns() == static_cast<int>(stages_.back().out_floats());
}

void ImageEncoder::reserve(int num_threads, int num_frames) {
  for (Stage& stage : stages_) {
    stage.view.weight = stage.weight.data();
    stage.in.resize(num_threads * stage.in_floats());  // zeros; nothing writes to the borders
    stage.out.resize(num_threads * stage.out_floats());
  }
  const size_t floats = num_frames * stages_.back().out_floats();
  if (features_.size() < floats) features_.resize(floats);
}

// gates = sigmoid(gate_out relu(gate_in means))
void ImageEncoder::gate(const Stage& stage, const float* means, float* gates) {
  const int channels = stage.view.out_channels, reduced = channels / 8;
  std::fill(gates, gates + channels, 0.0F);
  for (int r = 0; r < reduced; ++r) {
    float sum = 0;
    for (int c = 0; c < channels; ++c) sum += stage.gate_in[static_cast<size_t>(r) * channels + c] * means[c];
    if (!(sum > 0)) continue;
    for (int c = 0; c < channels; ++c) gates[c] += stage.gate_out[static_cast<size_t>(c) * reduced + r] * sum;
  }
  for (int c = 0; c < channels; ++c) gates[c] = 1.0F / (1.0F + std::exp(-gates[c]));
}

// One frame through all stages. features: [out_floats() of the last stage], input of the linear layer.
void ImageEncoder::convolve(const Kernels& kernels, const uint8_t* frame, int thread, float* features) {
  constexpr int kMaxChannels = 128;

  // Bytes to [-1, 1], inside the border of zeros.
  Stage& first = stages_.front();
  const int size = first.view.in_size, row = size * first.view.in_channels;
  const int padded_row = (size + 2) * first.view.in_channels;
  for (int y = 0; y < size; ++y) {
    const uint8_t* source = frame + static_cast<size_t>(y) * row;
    float* target = first.in.data() + thread * first.in_floats() + static_cast<size_t>(y + 1) * padded_row +
                    first.view.in_channels;
    for (int j = 0; j < row; ++j) target[j] = (static_cast<float>(source[j]) / 255.0F - 0.5F) / 0.5F;
  }

  for (size_t s = 0; s < stages_.size(); ++s) {
    Stage& stage = stages_[s];
    const int side = stage.view.out_size, channels = stage.view.out_channels, out_row = side * channels;
    const float* in = stage.in.data() + thread * stage.in_floats();
    float* out = stage.out.data() + thread * stage.out_floats();
    float means[kMaxChannels], gates[kMaxChannels];
    for (int y = 0; y < side; ++y)
      kernels.convolve_row(stage.view, in, y, out + static_cast<size_t>(y) * out_row);
    for (int channel = 0; channel < channels; channel += kBlockRows)
      kernels.normalize_channels(out + channel, side * side, channels, means + channel);
    gate(stage, means, gates);

    // Times the gates: inside the border of the next stage's input, or to the linear layer.
    const bool is_last = s + 1 == stages_.size();
    float* next = is_last ? features : stages_[s + 1].in.data() + thread * stages_[s + 1].in_floats();
    const size_t next_row = static_cast<size_t>(is_last ? side : side + 2) * channels;
    if (!is_last) next += next_row + channels;
    for (int y = 0; y < side; ++y) {
      const float* from = out + static_cast<size_t>(y) * out_row;
      float* to = next + y * next_row;
      for (int x = 0; x < side; ++x)
        for (int c = 0; c < channels; ++c) to[x * channels + c] = from[x * channels + c] * gates[c];
    }
  }
}

void ImageEncoder::encode(Model& model, const uint8_t* const* frames, int num_frames, float* out) {
  reserve(model.num_threads(), num_frames);
  // A frame stays with one thread through all stages: moving it between cores' caches would cost more than
  // sharing its 0.5 ms gains.
  const size_t floats = stages_.back().out_floats();
  model.pool_.run(num_frames, 1, [&](int frame, int, int thread) {
    convolve(model.kernels_, frames[frame], thread, features_.data() + frame * floats);
  });
  model.apply(*linear_, features_.data(), num_frames, out);
}

// ---- integers

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
