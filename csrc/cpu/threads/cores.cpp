#include "cores.h"

#if defined(__linux__)
#include <pthread.h>
#endif

namespace jat {

#if defined(__linux__)

CoreSet CoreSet::allowed() {
  CoreSet set;
  // Refused on machines of more cores than the set has room for.
  if (sched_getaffinity(0, sizeof(set.cores_), &set.cores_) != 0) CPU_ZERO(&set.cores_);
  return set;
}

int CoreSet::size() const { return CPU_COUNT(&cores_); }

void CoreSet::confine(std::thread& thread, int core) const {
  cpu_set_t others = cores_;
  if (core >= 0 && core < CPU_SETSIZE) CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0) return;
  pthread_setaffinity_np(thread.native_handle(), sizeof(others), &others);
}

void set_name(std::thread& thread, const char* name) { pthread_setname_np(thread.native_handle(), name); }

int current_core() { return sched_getcpu(); }

#else

CoreSet CoreSet::allowed() { return {}; }

int CoreSet::size() const { return 0; }

void CoreSet::confine(std::thread&, int) const {}

void set_name(std::thread&, const char*) {}

int current_core() { return -1; }

#endif

}  // namespace jat
