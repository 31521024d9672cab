// Names of threads, and the cores they may run on. Linux only: elsewhere these calls do nothing.
#pragma once

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace jat {

class CoreSet {
 public:
  // The cores that the calling thread may run on.
  static CoreSet allowed();

  int size() const;  // 0 if unknown

  // Let `thread` run on these cores except `core`. Does nothing if that would leave none or the system
  // refuses.
  void confine(std::thread& thread, int core) const;

 private:
#if defined(__linux__)
  cpu_set_t cores_;
#endif
};

// name: at most 15 characters, shown by debuggers and `top`.
void set_name(std::thread& thread, const char* name);

// The core that the calling thread is running on, -1 if unknown.
int current_core();

}  // namespace jat
