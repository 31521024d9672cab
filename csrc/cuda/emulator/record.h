// Records what each warp of a launch does, for tests/helpers/schedule.py, which derives from it what the
// barriers order. Does nothing unless it is compiled with JAT_RECORD=1.
//
// Accesses to memory come from the hooks that the compiler inserts for ThreadSanitizer, which record.cpp
// defines in place of the sanitizer's library. They are collected between two events, in words of 4 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace jat::emulator::record {

#ifndef JAT_RECORD
#define JAT_RECORD 0
#endif

enum class Kind : int32_t {
  kAccess,    // ranges: {how, space, first word, last word + 1}; how: 0 reads, 1 writes, 2 atomic
  kMeet,      // barrier, warps
  kInit,      // mbarrier, arrivals
  kArrive,    // mbarrier, bytes expected
  kExpect,    // mbarrier, bytes expected
  kWait,      // mbarrier, phase
  kTransfer,  // mbarrier, bytes; ranges: what is read (none for a store), what is written
  kSend,      // -, ticket; ranges: packets that are written
  kReceive,   // -, ticket; ranges: packets that are read, once they have this ticket
  kCount,     // counter, value before
  kPhase,     // number
};

struct Event {
  Kind kind;
  int32_t object, value;
  std::vector<int32_t> ranges;
};

// Memory whose accesses are recorded. Spaces 0 to num_blocks - 1 are the blocks' shared memory.
struct Space {
  std::string name;
  const char* begin;
  size_t bytes;
  bool has_packets = false;  // its accesses are kSend and kReceive alone
};

struct Recording {
  int num_blocks = 0, cluster_size = 0, num_warps = 0;  // of a block, the loading one included
  std::vector<Space> spaces;
  std::vector<std::string> objects;        // barriers and counters
  std::vector<std::vector<Event>> events;  // of each warp
};

#if JAT_RECORD
// The launch that follows is recorded; `spaces` beyond shared memory.
void request(const std::vector<Space>& spaces);
Recording& recording();

void begin(int num_blocks, int cluster_size, int num_threads, const char* shared, size_t shared_bytes);
void end();
void meet(const void* barrier, const std::string& name, int num_threads);
void init(const void* mbarrier, int arrivals);
void arrive(const void* mbarrier, uint32_t bytes);
void expect(const void* mbarrier, uint32_t bytes);
void wait(const void* mbarrier, int phase);
void transfer(const void* mbarrier, const void* target, const void* source, uint32_t bytes);
void send(const void* packet, uint32_t bytes, uint32_t ticket);
void receive(const void* packet, uint32_t bytes, uint32_t ticket);
void count(const void* counter, uint32_t before);
void phase(int number);
#else
inline void begin(int, int, int, const char*, size_t) {}
inline void end() {}
inline void meet(const void*, const char*, int) {}
inline void init(const void*, int) {}
inline void arrive(const void*, uint32_t) {}
inline void expect(const void*, uint32_t) {}
inline void wait(const void*, int) {}
inline void transfer(const void*, const void*, const void*, uint32_t) {}
inline void send(const void*, uint32_t, uint32_t) {}
inline void receive(const void*, uint32_t, uint32_t) {}
inline void count(const void*, uint32_t) {}
inline void phase(int) {}
#endif

}  // namespace jat::emulator::record
