#include "int4.h"

#include <algorithm>
#include <cmath>

namespace jat {

namespace {

constexpr float kClips[] = {1.0F, 0.95F, 0.9F, 0.85F, 0.8F, 0.75F, 0.7F};
constexpr float kLargestByte = 255.0F;
constexpr float kLeastWeight = 1e-30F;  // a row of smaller ones counts as zeros
constexpr int kSums = 8;                // partial sums, which the compiler adds in vectors

// 1.5 * 2^23: adding and subtracting it rounds |x| < 2^22 to a whole number, ties to even.
constexpr float kRoundShift = 12582912.0F;

struct Range {
  float low, high;
};

Range range_of(const float* weights, int count) {
  Range range{0, 0};
  for (int i = 0; i < count; ++i) {
    range.low = weights[i] < range.low ? weights[i] : range.low;
    range.high = weights[i] > range.high ? weights[i] : range.high;
  }
  return range;
}

inline float clamp_code(float code) {
  code = code > 0 ? code : 0;
  return code < kInt4MaxCode ? code : kInt4MaxCode;
}

uint8_t to_byte(float x, float least) {
  return static_cast<uint8_t>(std::min(std::max(std::nearbyint(x), least), kLargestByte));
}

// The line that a group's codes lie on, in units of the row's scale: weight = scale * code - offset.
struct Line {
  explicit Line(Int4Group group)
      : scale(static_cast<float>(group.scale)),
        offset(static_cast<float>(kInt4MinimumUnit * group.minimum)),
        inverse(group.scale > 0 ? 1.0F / scale : 0.0F) {}

  float code(float weight) const {
    return clamp_code((weight + offset) * inverse + kRoundShift - kRoundShift);
  }

  const float scale, offset, inverse;
};

// weights: [32], padded with zeros.
float squared_error(const float* weights, const Line& line) {
  float sums[kSums] = {};
  for (int i = 0; i < kInt4Columns; i += kSums) {
    for (int j = 0; j < kSums; ++j) {
      const float error = line.code(weights[i + j]) * line.scale - line.offset - weights[i + j];
      sums[j] += error * error;
    }
  }
  float total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

}  // namespace

float int4_row_scale(const float* row, int columns) {
  float widest = 0;
  for (int c = 0; c < columns; c += kInt4Columns) {
    const Range range = range_of(row + c, std::min(kInt4Columns, columns - c));
    widest = std::max(widest, range.high / kInt4MaxCode - range.low / kInt4MaxCode);
  }
  return widest > kLeastWeight ? widest / kLargestByte : 0.0F;
}

Int4Group fit_int4(const float* weights, int count, float row_scale) {
  if (!(row_scale > 0)) return {0, 0};
  float padded[kInt4Columns] = {};
  for (int i = 0; i < count; ++i) padded[i] = weights[i] / row_scale;
  const Range range = range_of(padded, kInt4Columns);

  Int4Group best{1, 0};
  float least = INFINITY;
  for (const float clip : kClips) {
    const Int4Group group{to_byte(clip * (range.high - range.low) / kInt4MaxCode, 1.0F),
                          to_byte(clip * -range.low / kInt4MinimumUnit, 0.0F)};
    const float error = squared_error(padded, Line(group));
    if (error < least) least = error, best = group;
  }
  return best;
}

void round_int4(const float* weights, int count, float row_scale, Int4Group group, uint8_t* codes) {
  const Line line(group);
  for (int i = 0; i < count; ++i)
    codes[i] = row_scale > 0 ? static_cast<uint8_t>(line.code(weights[i] / row_scale)) : 0;
}

}  // namespace jat
