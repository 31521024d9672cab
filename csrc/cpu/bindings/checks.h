// What the bindings share: checks of arguments, and the count of native seconds.
#pragma once

#include <chrono>
#include <sstream>
#include <stdexcept>

#include "../model.h"

namespace jat::bindings {

// Throws std::invalid_argument, in Python ValueError, with the parts of the message put together.
template <typename... Parts>
void expect(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Adds its lifetime to the model's `seconds`.
class Stopwatch {
 public:
  explicit Stopwatch(Model& model) : model_(model), begin_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    model_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  Model& model_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace jat::bindings
