#include "quick_step.h"

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstring>

#include "checks.h"

namespace py = pybind11;

namespace jat::bindings {

namespace {

// Larger integers are not all exact in float64.
constexpr int64_t kMaxExactInteger = int64_t{1} << 53;

// Copies numbers that may lie apart or unaligned. Convert: from `Given` to the type of `out`.
template <typename Given, typename T>
void copy_strided(const py::array& array, T* out) {
  const char* data = static_cast<const char*>(array.data());
  const py::ssize_t stride = array.strides(0), count = array.shape(0);
  for (py::ssize_t i = 0; i < count; ++i) {
    Given value;
    std::memcpy(&value, data + i * stride, sizeof(Given));
    out[i] = static_cast<T>(value);
  }
}

// ---- named tuples of Python

void expect_fields(const char* name, py::handle tuple, py::ssize_t count) {
  expect(PyTuple_Check(tuple.ptr()) && PyTuple_GET_SIZE(tuple.ptr()) == count, name, ": expected a tuple of ",
         count);
}

py::handle field(py::handle tuple, py::ssize_t index) { return PyTuple_GET_ITEM(tuple.ptr(), index); }

// Returns a tuple of the same class, without running its Python constructor.
py::object make_like(py::handle tuple, const py::tuple& fields) {
  const py::tuple arguments = py::make_tuple(fields);
  PyObject* made = PyTuple_Type.tp_new(Py_TYPE(tuple.ptr()), arguments.ptr(), nullptr);
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

py::object first(py::handle sequence) {
  PyObject* item = PySequence_GetItem(sequence.ptr(), 0);
  if (item == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(item);
}

int to_int(py::handle number) {
  const long value = PyLong_AsLong(number.ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  expect(value >= 0 && value <= INT_MAX, "state: expected numbers of 0 to ", INT_MAX, ", got ", value);
  return static_cast<int>(value);
}

}  // namespace

QuickStep::QuickStep(py::object model, py::object encoder, py::object action_encoder,
                     std::shared_ptr<Linear> head, Array<uint8_t> pool, int num_values, bool has_mission)
    : model_object_(std::move(model)),
      encoder_object_(std::move(encoder)),
      action_encoder_object_(std::move(action_encoder)),
      head_(std::move(head)),
      pool_(std::move(pool)),
      ndarray_(py::module_::import("numpy").attr("ndarray")),
      float64_type_(py::module_::import("numpy").attr("float64")),
      float32_(py::dtype::of<float>()),
      float64_(py::dtype::of<double>()),
      int32_(py::dtype::of<int32_t>()),
      int64_(py::dtype::of<int64_t>()),
      uint8_(py::dtype::of<uint8_t>()),
      model_(model_object_.cast<Model&>()),
      num_values_(num_values),
      has_mission_(has_mission) {
  const int hidden = model_.hidden_size();
  expect(model_.is_complete(), "model: expected set_final_norm to have been called");
  expect(head_ != nullptr && head_->columns() == hidden, "head: expected [rows, ", hidden, "]");
  expect(num_values >= 1, "num_values: expected at least 1, got ", num_values);

  int padded_rows = 0;
  if (py::isinstance<Linear>(encoder_object_)) {
    linear_ = encoder_object_.cast<const Linear*>();
    padded_rows = linear_->padded_rows();
    expect(linear_->columns() == num_values + 1, "encoder: expected ", num_values + 1, " columns, got ",
           linear_->columns());
    numbers_.resize(num_values + 1);
  } else if (py::isinstance<DiscreteEncoder>(encoder_object_)) {
    discrete_encoder_ = encoder_object_.cast<DiscreteEncoder*>();
    padded_rows = discrete_encoder_->padded_rows();
    expect(num_values <= discrete_encoder_->num_integers(), "num_values: expected at most ",
           discrete_encoder_->num_integers(), ", got ", num_values);
    integers_.resize(discrete_encoder_->num_integers());
  } else {
    expect(py::isinstance<ImageEncoder>(encoder_object_),
           "encoder: expected a Linear, a DiscreteEncoder or an ImageEncoder");
    image_encoder_ = encoder_object_.cast<ImageEncoder*>();
    expect(image_encoder_->is_complete(),
           "encoder: expected stages that follow each other, and a linear layer");
    padded_rows = image_encoder_->padded_rows();
  }
  expect(padded_rows >= hidden, "encoder: expected at least ", hidden, " rows, got ", padded_rows);
  encoded_.resize(padded_rows);

  if (py::isinstance<Linear>(action_encoder_object_)) {
    action_linear_ = action_encoder_object_.cast<const Linear*>();
    expect(action_linear_->columns() == head_->rows() && action_linear_->padded_rows() >= hidden,
           "action_encoder: expected [", hidden, ", ", head_->rows(), "], got [", action_linear_->rows(),
           ", ", action_linear_->columns(), "]");
    action_.resize(action_linear_->padded_rows());
  } else {
    expect(py::isinstance<Array<float>>(action_encoder_object_),
           "action_encoder: expected a Linear, or float32 ", "[choices, ", hidden, "]");
    const auto table = py::reinterpret_borrow<Array<float>>(action_encoder_object_);
    expect(table.ndim() == 2 && table.shape(1) == hidden && table.shape(0) == head_->rows(),
           "action_encoder: expected float32 [", head_->rows(), ", ", hidden, "]");
    choices_ = table.data();
    num_choices_ = table.shape(0);
  }
  prediction_.resize(head_->padded_rows());
}

// ---- reading

bool QuickStep::read(py::handle continuous, py::handle discrete, py::handle text, py::handle image,
                     py::handle reward, py::handle last_text) {
  is_read_ = false;
  const bool given[] = {!continuous.is_none(), !discrete.is_none(), !text.is_none(), !image.is_none()};
  const bool expected[] = {linear_ != nullptr, discrete_encoder_ != nullptr, has_mission_,
                           image_encoder_ != nullptr};
  if (!std::equal(given, given + 4, expected) || !read_reward(reward)) return false;
  if (has_mission_ && !(PyUnicode_CheckExact(text.ptr()) && PyUnicode_CheckExact(last_text.ptr()) &&
                        PyUnicode_Compare(text.ptr(), last_text.ptr()) == 0))
    return false;
  is_read_ = linear_             ? read_numbers(continuous)
             : discrete_encoder_ ? read_integers(discrete)
                                 : read_frame(image);
  return is_read_;
}

bool QuickStep::read_reward(py::handle reward) {
  double value = 0;
  if (PyFloat_CheckExact(reward.ptr()) || py::type::handle_of(reward).ptr() == float64_type_.ptr()) {
    value = PyFloat_AS_DOUBLE(reward.ptr());
  } else if (PyLong_CheckExact(reward.ptr())) {
    int overflow = 0;
    const int64_t integer = PyLong_AsLongLongAndOverflow(reward.ptr(), &overflow);
    if (overflow != 0 || integer > kMaxExactInteger || integer < -kMaxExactInteger) return false;
    value = static_cast<double>(integer);
  } else if (!reward.is_none()) {
    return false;
  }
  if (!(std::abs(value) <= static_cast<double>(FLT_MAX))) return false;  // also NaN
  reward_ = static_cast<float>(value);
  return true;
}

bool QuickStep::read_numbers(py::handle observation) {
  if (py::type::handle_of(observation).ptr() != ndarray_.ptr()) return false;
  const auto array = py::reinterpret_borrow<py::array>(observation);
  if (array.ndim() != 1 || array.shape(0) != num_values_) return false;
  const py::dtype dtype = array.dtype();
  if (dtype.is(float32_)) {
    copy_strided<float>(array, numbers_.data());
  } else if (dtype.is(float64_)) {
    copy_strided<double>(array, numbers_.data());
  } else {
    return false;
  }
  numbers_.back() = reward_;
  return std::all_of(numbers_.begin(), numbers_.end(), [](float x) { return std::isfinite(x); });
}

bool QuickStep::read_integers(py::handle observation) {
  if (py::type::handle_of(observation).ptr() != ndarray_.ptr()) return false;
  const auto array = py::reinterpret_borrow<py::array>(observation);
  if (array.ndim() != 1 || array.shape(0) != num_values_ || !array.dtype().is(int64_)) return false;
  copy_strided<int64_t>(array, integers_.data());
  const int64_t vocab_size = discrete_encoder_->vocab_size();
  return std::all_of(integers_.begin(), integers_.begin() + num_values_,
                     [=](int64_t x) { return x >= 0 && x < vocab_size; });
}

bool QuickStep::read_frame(py::handle observation) {
  if (!is_frame(observation)) return false;
  frame_ = py::reinterpret_borrow<py::object>(observation);
  return true;
}

bool QuickStep::is_frame(py::handle observation) const {
  if (py::type::handle_of(observation).ptr() != ndarray_.ptr()) return false;
  const auto array = py::reinterpret_borrow<py::array>(observation);
  const ConvView& input = image_encoder_->input();
  return array.dtype().is(uint8_) && array.ndim() == 3 && array.shape(0) == input.in_size &&
         array.shape(1) == input.in_size && array.shape(2) == input.in_channels &&
         (array.flags() & py::array::c_style) != 0;
}

// ---- the step

void* QuickStep::data_of(const char* name, py::handle handle, const py::object& dtype, int64_t least) const {
  const bool is_array = py::type::handle_of(handle).ptr() == ndarray_.ptr();
  const auto array = is_array ? py::reinterpret_borrow<py::array>(handle) : py::array(pool_);
  const py::dtype own = array.dtype();
  const bool is_usable =
      is_array && (own.is(dtype) || own.equal(dtype)) && (array.flags() & py::array::c_style);
  expect(is_usable && array.size() >= least, name, ": expected a contiguous array with at least ", least,
         " numbers of the type that _cpu.pyi names");
  return const_cast<void*>(array.data());
}

const float* QuickStep::find_action(py::handle last_action) {
  if (action_linear_ != nullptr)
    return static_cast<const float*>(
        data_of("last_action", last_action, float32_, action_linear_->columns()));
  const py::ssize_t choice = PyNumber_AsSsize_t(last_action.ptr(), PyExc_ValueError);
  if (choice == -1 && PyErr_Occurred()) throw py::error_already_set();
  expect(choice >= 0 && choice < num_choices_, "last_action: expected 0 to ", num_choices_ - 1, ", got ",
         choice);
  return choices_ + choice * model_.hidden_size();
}

void QuickStep::encode(const uint8_t* frame) {
  if (linear_ != nullptr) {
    model_.apply(*linear_, numbers_.data(), 1, encoded_.data());
  } else if (discrete_encoder_ != nullptr) {
    const Integers one = {integers_.data(), static_cast<int>(integers_.size()), nullptr, 0, reward_};
    discrete_encoder_->encode(model_, &one, 1, encoded_.data());
  } else {
    image_encoder_->encode(model_, &frame, 1, encoded_.data());
  }
}

void QuickStep::read_mission(py::handle mission) {
  const auto* tokens = static_cast<const int64_t*>(data_of("mission", mission, int64_, 1));
  const int64_t count = py::len(mission), places = static_cast<int64_t>(integers_.size()) - num_values_;
  expect(count <= places, "mission: expected at most ", places, " integers, got ", count);
  for (int64_t i = 0; i < count; ++i)
    expect(tokens[i] >= 0 && tokens[i] < discrete_encoder_->vocab_size(),
           "mission: expected integers of 0 to ", discrete_encoder_->vocab_size() - 1, ", got ", tokens[i]);
  std::copy(tokens, tokens + count, integers_.end() - count);
}

py::object QuickStep::run(py::handle state, py::handle mission, py::handle noise, int window) {
  // All of Python's part that can be done before the step is: after it, nothing is in the caches.
  expect(is_read_, "run: expected after read() has returned True");
  is_read_ = false;
  expect(window >= 1, "window: expected at least 1, got ", window);
  expect_fields("state", state, 5);
  const py::handle cached = field(state, 0), last = field(state, 2);
  expect_fields("state.cached", cached, 3);
  expect_fields("state.last", last, 5);

  // Which tokens are fed, see EpisodesState.context_len.
  const int hidden = model_.hidden_size(), rows = head_->rows();
  const int num_again = to_int(field(state, 1)), num_tokens = to_int(field(cached, 2));
  expect(num_again == 1 || num_again == 2, "num_again: expected 1 or 2, got ", num_again);
  const int32_t num_new = num_again + 1, start_offset = to_int(field(cached, 1));
  const int32_t context_len = num_tokens + (num_again == 1 ? 1 : 0);
  expect(num_tokens >= 0 && context_len <= model_.max_positions() - num_new, "num_tokens: expected 0 to ",
         model_.max_positions() - num_new, ", got ", num_tokens);
  expect(start_offset >= 0 && start_offset < kPageSize, "start_offset: expected 0 to ", kPageSize - 1,
         ", got ", start_offset);

  const int num_pages = (start_offset + context_len + num_new + kPageSize - 1) / kPageSize;
  const auto* table = static_cast<const int32_t*>(data_of("table", field(cached, 0), int32_, num_pages));
  const int64_t pool_pages = pool_.size() / static_cast<py::ssize_t>(model_.page_bytes());
  for (int page = 0; page < num_pages; ++page)
    expect(table[page] >= 0 && table[page] < pool_pages, "table: expected pages below ", pool_pages, ", got ",
           table[page]);

  if (has_mission_) read_mission(mission);
  const py::object last_embedding = first(field(last, 1)), last_action = first(field(last, 3));
  const auto* before = static_cast<const float*>(data_of("embeddings", last_embedding, float32_, hidden));
  const float* action = find_action(last_action);
  const float* subtracted =
      noise.is_none() ? nullptr : static_cast<const float*>(data_of("noise", noise, float32_, rows));
  const uint8_t* frame = nullptr;
  if (image_encoder_ != nullptr) {
    // The array is the caller's own, which an action space's own code may have resized.
    expect(is_frame(frame_), "image: expected the array as it was read");
    frame = static_cast<const uint8_t*>(py::reinterpret_borrow<py::array>(frame_).data());
  }

  // The next state, complete but for the numbers in its arrays and a discrete action.
  Array<float> embedding(hidden), values(rows);
  py::list actions(1);
  actions[0] = values;
  const auto [next_cached, dropped] = keep_newest(cached, num_tokens + 2, start_offset, window);
  const py::object next_last = make_like(last, py::make_tuple(field(last, 0), py::make_tuple(embedding),
                                                              field(last, 2), actions, field(last, 4)));
  py::object num_draws = py::reinterpret_borrow<py::object>(field(state, 3));  // may exceed an int
  if (subtracted != nullptr) num_draws += py::int_(1);
  const py::object next_state =
      make_like(state, py::make_tuple(next_cached, dropped ? 2 : 1, next_last, num_draws, false));

  const float* tokens[kMaxStepTokens];
  int count = 0;
  if (num_again == 2) tokens[count++] = before;
  tokens[count++] = action_linear_ != nullptr ? action_.data() : action;
  tokens[count++] = encoded_.data();
  const Linear* head = head_.get();
  float* out = prediction_.data();
  const StepPlan plan = {1, count, tokens, &num_new, &context_len, &start_offset, &table, nullptr};
  const AgentHeads heads = {&head, &out};
  uint8_t* pages = pool_.mutable_data();
  float *embedding_out = embedding.mutable_data(), *values_out = values.mutable_data();

  bool is_finite = true;
  int choice = 0;
  {
    const py::gil_scoped_release release;
    const Stopwatch stopwatch(model_);
    encode(frame);
    if (action_linear_ != nullptr) model_.apply(*action_linear_, action, 1, action_.data());
    model_.decode(plan, heads, pages);

    std::copy(encoded_.begin(), encoded_.begin() + hidden, embedding_out);
    std::copy(out, out + rows, values_out);
    is_finite = std::all_of(out, out + rows, [](float x) { return std::isfinite(x); });
    if (subtracted != nullptr)
      for (int i = 0; i < rows; ++i) out[i] -= subtracted[i];
    choice = static_cast<int>(std::max_element(out, out + rows) - out);  // the first of equals
  }

  if (image_encoder_ != nullptr) frame_ = py::none();
  if (!is_finite) return py::none();
  if (action_linear_ == nullptr) {
    const py::int_ chosen(choice);
    actions[0] = chosen;
    return py::make_tuple(chosen, values, next_state);
  }
  py::list numbers(rows);
  for (int i = 0; i < rows; ++i) numbers[i] = py::float_(values_out[i]);
  return py::make_tuple(numbers, values, next_state);
}

std::pair<py::object, bool> QuickStep::keep_newest(py::handle cached, int num_tokens, int start_offset,
                                                   int window) {
  const py::handle table = field(cached, 0);
  const int dropped = num_tokens - window;
  if (dropped <= 0) return {make_like(cached, py::make_tuple(table, start_offset, num_tokens)), false};

  const int whole_pages = (start_offset + dropped) / kPageSize, offset = (start_offset + dropped) % kPageSize;
  if (whole_pages == 0) return {make_like(cached, py::make_tuple(table, offset, window)), true};
  const auto old = py::reinterpret_borrow<Array<int32_t>>(table);
  expect(whole_pages <= old.size(), "table: expected the pages of all tokens, got ", old.size());
  Array<int32_t> turned(old.size());
  std::rotate_copy(old.data(), old.data() + whole_pages, old.data() + old.size(), turned.mutable_data());
  return {make_like(cached, py::make_tuple(turned, offset, window)), true};
}

}  // namespace jat::bindings
