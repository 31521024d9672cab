// The image encoder's convolutions and their normalisation.
#pragma once

#include "math.inl"

namespace {

using jat::ConvView;
using jat::kBlockRows;

// All channels of `Pixels` pixels of row y, from column x on.
template <int Pixels>
inline void convolve_pixels(const ConvView& conv, const float* in, int y, int x, float* out) {
  const int width = conv.in_size + 2;
  const size_t step = 2 * static_cast<size_t>(conv.in_channels);  // stride 2
  for (int block = 0; block < conv.out_channels / kBlockRows; ++block) {
    const float* w = conv.weight + static_cast<size_t>(block) * 9 * conv.in_channels * kBlockRows;
    V acc[Pixels][kVectors];
    for (int p = 0; p < Pixels; ++p)
      for (int i = 0; i < kVectors; ++i) acc[p][i] = broadcast(0.0F);

    for (int ky = 0; ky < 3; ++ky) {
      for (int kx = 0; kx < 3; ++kx) {
        const float* source = in + (static_cast<size_t>(2 * y + ky) * width + 2 * x + kx) * conv.in_channels;
        for (int c = 0; c < conv.in_channels; ++c, w += kBlockRows) {
          V weights[kVectors];
          for (int i = 0; i < kVectors; ++i) weights[i] = load(w + i * kLanes);
          for (int p = 0; p < Pixels; ++p) {
            const V value = broadcast(source[p * step + c]);
            for (int i = 0; i < kVectors; ++i) acc[p][i] = fma(value, weights[i], acc[p][i]);
          }
        }
      }
    }

    for (int p = 0; p < Pixels; ++p)
      for (int i = 0; i < kVectors; ++i)
        store(out + static_cast<size_t>(x + p) * conv.out_channels + block * kBlockRows + i * kLanes,
              acc[p][i]);
  }
}

// The same for a number of pixels that is known at run time only, 1 to `Pixels`.
template <int Pixels>
inline void convolve_count(const ConvView& conv, const float* in, int y, int x, int count, float* out) {
  if (count == Pixels) {
    convolve_pixels<Pixels>(conv, in, y, x, out);
  } else if constexpr (Pixels > 1) {
    convolve_count<Pixels - 1>(conv, in, y, x, count, out);
  }
}

void convolve_row(const ConvView& conv, const float* in, int y, float* out) {
  constexpr int kMaxPixels = kLanes == 16 ? 8 : kLanes == 8 ? 5 : 2;
  // Split the row evenly: with few pixels each multiply-add waits for the one before.
  const int pieces = (conv.out_size + kMaxPixels - 1) / kMaxPixels;
  for (int piece = 0, x = 0; piece < pieces; ++piece) {
    const int count = (conv.out_size - x) / (pieces - piece);
    convolve_count<kMaxPixels>(conv, in, y, x, count, out);
    x += count;
  }
}

// Sum of value(p) over pixels p, as a sum of sums of short runs: most pixels of real frames are alike, and
// one by one every addition to a large sum would round the same way.
template <class Value>
inline V sum_pixels(int num_pixels, Value value) {
  constexpr int kRun = 32;
  V sum = broadcast(0.0F);
  for (int begin = 0; begin < num_pixels; begin += kRun) {
    const int end = begin + kRun < num_pixels ? begin + kRun : num_pixels;
    V run = broadcast(0.0F);
    for (int p = begin; p < end; ++p) run = add(run, value(p));
    sum = add(sum, run);
  }
  return sum;
}

// 16 channels: x = leaky ReLU((x - mean) / sqrt(variance + epsilon)), each channel by itself.
void normalize_channels(float* x, int num_pixels, int channels, float* means) {
  const V share = broadcast(1.0F / static_cast<float>(num_pixels));
  for (int i = 0; i < kBlockRows; i += kLanes) {
    const auto pixel = [&](int p) { return x + static_cast<size_t>(p) * channels + i; };
    const V mean = mul(sum_pixels(num_pixels, [&](int p) { return load(pixel(p)); }), share);

    const V squares = sum_pixels(num_pixels, [&](int p) {
      const V centred = sub(load(pixel(p)), mean);
      return mul(centred, centred);
    });
    float variance[kLanes];
    store(variance, mul(squares, share));
    for (float& v : variance) v = 1.0F / __builtin_sqrtf(v + kNormEpsilon);
    const V inverse = load(variance);

    const V after = sum_pixels(num_pixels, [&](int p) {
      const V normal = mul(sub(load(pixel(p)), mean), inverse);
      const V leaky = max(normal, mul(normal, broadcast(0.01F)));
      store(pixel(p), leaky);
      return leaky;
    });
    store(means + i, mul(after, share));
  }
}

}  // namespace
