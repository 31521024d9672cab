#include "image_encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace jat {

void ImageEncoder::add_stage(int in_channels, int out_channels, int in_size, const float* weight,
                             const float* gate_in, const float* gate_out) {
  Stage stage;
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
  queues_ = std::vector<WorkQueue>(3 * stages_.size() + 1);
}

bool ImageEncoder::is_complete() const {
  for (size_t s = 1; s < stages_.size(); ++s) {
    const ConvView &before = stages_[s - 1].view, &here = stages_[s].view;
    if (here.in_channels != before.out_channels || here.in_size != before.out_size) return false;
  }
  return linear_ && !stages_.empty() && linear_->columns() == static_cast<int>(stages_.back().out_floats());
}

void ImageEncoder::reserve(int num_frames) {
  if (num_frames <= capacity_) return;
  const size_t frames = num_frames;
  for (Stage& stage : stages_) {
    stage.view.weight = stage.weight.data();
    stage.in.assign(frames * stage.in_floats(), 0.0F);  // borders stay zero
    stage.out.resize(frames * stage.out_floats());
    stage.means.resize(frames * stage.view.out_channels);
  }
  capacity_ = num_frames;  // last: memory may run out before
}

// sigmoid(gate_out relu(gate_in means))
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

void ImageEncoder::encode(Model& model, const uint8_t* const* frames, int num_frames, float* out) {
  constexpr int kMaxChannels = 128;
  reserve(num_frames);
  for (WorkQueue& queue : queues_) queue.reset();
  const Kernels& kernels = model.kernels_;
  model.pool_.run([&](int) {
    int begin, end;
    const Stage& first = stages_.front();
    const int size = first.view.in_size, row = size * first.view.in_channels;
    const int padded_row = (size + 2) * first.view.in_channels;
    while (queues_.back().take(num_frames * size, 12, begin, end)) {
      for (int i = begin; i < end; ++i) {
        const int frame = i / size, y = i % size;
        const uint8_t* source = frames[frame] + static_cast<size_t>(y) * row;
        float* target = stages_.front().in.data() + frame * first.in_floats() +
                        static_cast<size_t>(y + 1) * padded_row + first.view.in_channels;
        for (int j = 0; j < row; ++j) target[j] = (static_cast<float>(source[j]) / 255.0F - 0.5F) / 0.5F;
      }
    }
    model.pool_.barrier();

    for (size_t s = 0; s < stages_.size(); ++s) {
      Stage& stage = stages_[s];
      const int side = stage.view.out_size, channels = stage.view.out_channels,
                blocks = channels / kBlockRows;
      const int out_row = side * channels;
      while (queues_[3 * s].take(num_frames * side, 1, begin, end)) {
        const int frame = begin / side, y = begin % side;
        kernels.convolve_row(
            stage.view, stage.in.data() + frame * stage.in_floats(), y,
            stage.out.data() + frame * stage.out_floats() + static_cast<size_t>(y) * out_row);
      }
      model.pool_.barrier();
      while (queues_[3 * s + 1].take(num_frames * blocks, 1, begin, end)) {
        const int frame = begin / blocks, channel = begin % blocks * kBlockRows;
        kernels.normalize_channels(stage.out.data() + frame * stage.out_floats() + channel, side * side,
                                   channels,
                                   stage.means.data() + static_cast<size_t>(frame) * channels + channel);
      }
      model.pool_.barrier();
      // Gate the channels: into the next stage's input, or in place for the linear layer.
      float* next = s + 1 < stages_.size() ? stages_[s + 1].in.data() : nullptr;
      const size_t next_floats = next ? stages_[s + 1].in_floats() : 0;
      while (queues_[3 * s + 2].take(num_frames, 1, begin, end)) {
        float gates[kMaxChannels];
        gate(stage, stage.means.data() + static_cast<size_t>(begin) * channels, gates);
        float* source = stage.out.data() + begin * stage.out_floats();
        for (int y = 0; y < side; ++y) {
          float* from = source + static_cast<size_t>(y) * out_row;
          float* to =
              next ? next + begin * next_floats + (static_cast<size_t>(y + 1) * (side + 2) + 1) * channels
                   : from;
          for (int x = 0; x < side; ++x)
            for (int c = 0; c < channels; ++c) to[x * channels + c] = from[x * channels + c] * gates[c];
        }
      }
      model.pool_.barrier();
    }
  });
  model.apply(*linear_, stages_.back().out.data(), num_frames, out);
}

}  // namespace jat
