// Runs steps and encoders with one to four threads, some of which are late, and compares the results bit for
// bit. The tests build it with ThreadSanitizer.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "../encoders.h"
#include "../model.h"

namespace {

using namespace jat;

constexpr int kHidden = 256, kHeads = 4, kLayers = 2, kPositions = 128, kFrame = 84, kChannels = 4;

std::vector<float> numbers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.05F);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::shared_ptr<Linear> make_linear(DType dtype, int rows, int columns, unsigned seed) {
  auto linear = std::make_shared<Linear>(dtype, rows, columns, true);
  linear->pack_rows(0, rows, numbers(static_cast<size_t>(rows) * columns, seed).data());
  linear->set_bias(numbers(rows, seed + 1).data());
  return linear;
}

// All results of some steps and encoded observations, one after the other.
std::vector<float> play(DType dtype, DType kv_dtype, int num_threads) {
  Model model(kHidden, kHeads, kv_dtype, numbers(kPositions * kHidden, 1), num_threads, 100, "auto");
  const std::vector<float> ones(kHidden, 1.0F), zeros(kHidden, 0.0F);
  for (unsigned layer = 0; layer < kLayers; ++layer) {
    const unsigned seed = 10 * layer;
    model.add_layer({ones, zeros, ones, zeros, make_linear(dtype, 3 * kHidden, kHidden, seed),
                     make_linear(dtype, kHidden, kHidden, seed + 2),
                     make_linear(dtype, 4 * kHidden, kHidden, seed + 4),
                     make_linear(dtype, kHidden, 4 * kHidden, seed + 6), kPositions});
  }
  model.set_final_norm(ones, zeros);

  ImageEncoder images;
  int side = kFrame, channels = kChannels;
  for (const int out : {32, 64}) {
    const std::vector<float> gates = numbers(static_cast<size_t>(out / 8) * out, out);
    images.add_stage(channels, out, side, numbers(static_cast<size_t>(out) * channels * 9, out + 1).data(),
                     gates.data(), gates.data());
    channels = out, side = (side + 1) / 2;
  }
  images.set_linear(make_linear(dtype, kHidden, channels * side * side, 50));
  constexpr int kWidth = 15, kIntegers = 212;
  DiscreteEncoder integers(numbers(320 * kWidth, 60), kWidth,
                           make_linear(dtype, kHidden, kIntegers * kWidth, 61));

  // Six sessions with three tokens each, whose lengths differ from the second step on; then two of them and one
  // alone, whose threads fetch ahead. They begin with keys and values of zeros, so that attention is shared.
  constexpr int kSessions = 6, kTokens = 3, kPages = kPositions / kPageSize;
  std::vector<uint8_t> pool(kSessions * kPages * model.page_bytes());
  const auto head = make_linear(DType::kFloat32, 18, kHidden, 70);
  const auto vocabulary = make_linear(dtype, 1000, kHidden, 80);  // read by several threads
  std::vector<int32_t> tables(kSessions * kPages), num_new(kSessions, kTokens), offsets(kSessions, 0),
      lens(kSessions, 96);
  for (size_t page = 0; page < tables.size(); ++page) tables[page] = static_cast<int32_t>(page);
  std::vector<const int32_t*> page_tables;
  std::vector<const Linear*> heads(kSessions, head.get());
  std::vector<std::vector<float>> predictions(kSessions, std::vector<float>(head->padded_rows()));
  std::vector<float*> out;
  for (int session = 0; session < kSessions; ++session) {
    page_tables.push_back(tables.data() + session * kPages);
    out.push_back(predictions[session].data());
  }

  constexpr int kFrames = 3;
  std::vector<uint8_t> pixels(static_cast<size_t>(kFrame) * kFrame * kChannels, 100);
  const std::vector<const uint8_t*> frames(kFrames, pixels.data());
  const std::vector<int64_t> values(kIntegers, 7);
  const std::vector<Integers> observations(kFrames, {values.data(), kIntegers, nullptr, 0, 0.5F});
  std::vector<float> images_out(static_cast<size_t>(kFrames) * images.padded_rows());
  std::vector<float> integers_out(static_cast<size_t>(kFrames) * integers.padded_rows());

  std::vector<float> results;
  const auto keep = [&](const std::vector<float>& values) {
    results.insert(results.end(), values.begin(), values.end());
  };
  for (int step = 0; step < 8; ++step) {
    // Workers spin for 100 us, so some steps find them awake, some asleep, and some just falling asleep.
    std::this_thread::sleep_for(std::chrono::microseconds(step * 40));
    const std::vector<float> x = numbers(static_cast<size_t>(kSessions) * kTokens * kHidden, 100 + step);
    std::vector<const float*> embeddings;
    for (int token = 0; token < kSessions * kTokens; ++token)
      embeddings.push_back(x.data() + token * kHidden);
    for (const int sessions : {kSessions, 2, 1}) {
      const StepPlan plan = {sessions,    sessions * kTokens, embeddings.data(),  num_new.data(),
                             lens.data(), offsets.data(),     page_tables.data(), nullptr};
      model.decode(plan, {heads.data(), out.data()}, pool.data());
      for (int session = 0; session < sessions; ++session) keep(predictions[session]);
    }
    // Texts: the same tokens, of which some are predicted after.
    const std::vector<int32_t> num_predicted = {0, 1, 2, 3, 0, 1};
    const StepPlan texts = {kSessions,   kSessions * kTokens, embeddings.data(),  num_new.data(),
                            lens.data(), offsets.data(),      page_tables.data(), num_predicted.data()};
    std::vector<float> logits(static_cast<size_t>(7) * vocabulary->padded_rows());
    model.decode(texts, *vocabulary, logits.data(), pool.data());
    keep(logits);
    for (int session = 0; session < kSessions; ++session) lens[session] += session % kTokens + 1;
    images.encode(model, frames.data(), step % kFrames + 1, images_out.data());
    integers.encode(model, observations.data(), step % kFrames + 1, integers_out.data());
    keep(images_out);
    keep(integers_out);
  }
  return results;
}

}  // namespace

int main() {
  for (const auto& [dtype, kv_dtype] :
       {std::pair{DType::kFloat32, DType::kFloat32}, std::pair{DType::kInt8, DType::kBFloat16},
        std::pair{DType::kFloat32, DType::kInt8}}) {
    const std::vector<float> expected = play(dtype, kv_dtype, 1);
    for (const int num_threads : {2, 4}) {
      const std::vector<float> results = play(dtype, kv_dtype, num_threads);
      if (std::memcmp(results.data(), expected.data(), sizeof(float) * expected.size()) != 0) {
        std::printf("%d threads give other results\n", num_threads);
        return 1;
      }
    }
  }
  std::printf("played\n");
}
