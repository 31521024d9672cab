// A step of one agent in two calls, for the usual input; whatever else a caller may pass is left to Python.
#pragma once

#include "calls.h"

namespace jat::bindings {

// Steps with one kind of observation and one action space. Sessions share it: nothing in it outlives a step.
class QuickStep {
 public:
  // encoder: a Linear of [num_values + 1] columns, a DiscreteEncoder or an ImageEncoder.
  // action_encoder: a Linear of as many columns as the action has numbers, or the embeddings of the choices,
  // float32 [choices, hidden_size].
  QuickStep(pybind11::object model, pybind11::object encoder, pybind11::object action_encoder,
            std::shared_ptr<Linear> head, Array<uint8_t> pool, int num_values, bool has_mission);

  // Check and copy an observation; an image is referred to until `run`. The arguments are as a caller passed
  // them, or None. Returns false if they are not exactly what is usual, right or wrong.
  bool read(pybind11::handle continuous, pybind11::handle discrete, pybind11::handle text,
            pybind11::handle image, pybind11::handle reward, pybind11::handle last_text);

  // Take the step that was read.
  // state: an EpisodesState of engine/step.py, of an agent that has taken a step in its episode; not changed.
  // mission: int64 tokens, or None. noise: float32 [1, rows of the head] or None. window: tokens to keep.
  // Returns the action, a list or an int, the prediction, float32 [rows of the head], and the next state; None
  // if the prediction is not finite.
  pybind11::object run(pybind11::handle state, pybind11::handle mission, pybind11::handle noise, int window);

 private:
  bool read_reward(pybind11::handle reward);
  bool read_numbers(pybind11::handle observation);
  bool read_integers(pybind11::handle observation);
  bool read_frame(pybind11::handle observation);
  bool is_frame(pybind11::handle observation) const;

  // The data of an exact ndarray. Throws std::invalid_argument for anything else.
  void* data_of(const char* name, pybind11::handle handle, const pybind11::object& dtype,
                int64_t least) const;
  // The embedding of the previous action or, if that is continuous, its numbers.
  const float* find_action(pybind11::handle last_action);
  void encode(const uint8_t* frame);
  void read_mission(pybind11::handle mission);

  // CachedTokens that keep the newest `window` of `num_tokens`, and whether any were dropped: what keep_newest of
  // engine/kv_cache.py returns, with which tests compare it.
  static std::pair<pybind11::object, bool> keep_newest(pybind11::handle cached, int num_tokens,
                                                       int start_offset, int window);

  // Kept alive; the pointers are to what these hold.
  const pybind11::object model_object_, encoder_object_, action_encoder_object_;
  const std::shared_ptr<Linear> head_;
  Array<uint8_t> pool_;
  const pybind11::object ndarray_, float64_type_;                     // types of numpy
  const pybind11::object float32_, float64_, int32_, int64_, uint8_;  // dtypes

  Model& model_;
  const Linear* linear_ = nullptr;  // one of these three encodes observations
  DiscreteEncoder* discrete_encoder_ = nullptr;
  ImageEncoder* image_encoder_ = nullptr;
  const Linear* action_linear_ = nullptr;  // continuous actions
  const float* choices_ = nullptr;         // embeddings of discrete ones
  int64_t num_choices_ = 0;
  const int num_values_;
  const bool has_mission_;

  // The observation, between `read` and `run`.
  bool is_read_ = false;
  float reward_ = 0;
  std::vector<float> numbers_;     // [num_values + 1], the reward last
  std::vector<int64_t> integers_;  // values, zeros, the mission's tokens
  pybind11::object frame_;

  std::vector<float> encoded_, action_, prediction_;  // padded results of layers
};

}  // namespace jat::bindings
