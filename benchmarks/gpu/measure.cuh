// How the programs of this folder measure: times of the device and of the host, summaries as JSON, and what is
// freed by itself. Every spin of a kernel gives up after kSpinLimitNs.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

constexpr unsigned long long kSpinLimitNs = 200'000'000;

inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}
#define CHECK(call) check((call), #call)

inline __device__ unsigned long long global_timer() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

using Clock = std::chrono::steady_clock;

inline double microseconds(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

struct Summary {
  double p50, p99, least;
};

inline Summary summary(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  auto at = [&](double share) {
    return values[std::min(values.size() - 1, static_cast<size_t>(share * values.size()))];
  };
  return {at(0.5), at(0.99), values.front()};
}

inline std::string json(const Summary& s, size_t count) {
  char text[160];
  std::snprintf(text, sizeof text, "{\"p50_us\": %.4f, \"p99_us\": %.4f, \"min_us\": %.4f, \"n\": %zu}",
                s.p50, s.p99, s.least, count);
  return text;
}

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 32) out += c;
  }
  return out + "\"";
}

struct Report {
  std::string body;
  void add(const std::string& name, const std::string& value) {
    body += (body.empty() ? "" : ",\n ") + quoted(name) + ": " + value;
  }
  // Runs a part; what it throws is its value.
  void part(const std::string& name, const std::function<std::string()>& measure) {
    try {
      add(name, measure());
    } catch (const std::exception& error) {
      add(name, "{\"error\": " + quoted(error.what()) + "}");
      cudaGetLastError();
    }
    if (cudaDeviceSynchronize() != cudaSuccess) {
      add(name + " (after it)", "{\"error\": \"the device is in an error state; later parts fail too\"}");
    }
  }
};

template <typename T>
struct DeviceBuffer {
  T* data = nullptr;
  explicit DeviceBuffer(size_t count) {
    CHECK(cudaMalloc(&data, count * sizeof(T)));
    CHECK(cudaMemset(data, 0, count * sizeof(T)));
  }
  ~DeviceBuffer() { cudaFree(data); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
};

struct MappedWord {
  volatile unsigned* host = nullptr;
  unsigned* device = nullptr;
  MappedWord() {
    void* pointer = nullptr;
    CHECK(cudaHostAlloc(&pointer, 128, cudaHostAllocMapped));
    std::memset(pointer, 0, 128);
    host = static_cast<volatile unsigned*>(pointer);
    void* mapped = nullptr;
    CHECK(cudaHostGetDevicePointer(&mapped, pointer, 0));
    device = static_cast<unsigned*>(mapped);
  }
  ~MappedWord() { cudaFreeHost(const_cast<unsigned*>(host)); }
  MappedWord(const MappedWord&) = delete;
  MappedWord& operator=(const MappedWord&) = delete;
  // False if the word does not come within 200 ms.
  bool wait(unsigned value) const {
    const auto begin = Clock::now();
    while (*host != value) {
      if (microseconds(begin) > 2e5) return false;
    }
    return true;
  }
};

struct Stream {
  cudaStream_t stream = nullptr;
  Stream() { CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

struct Event {
  cudaEvent_t event = nullptr;
  Event() { CHECK(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

static __global__ void delay(unsigned long long ns) {
  const unsigned long long begin = global_timer();
  while (global_timer() - begin < ns) {
  }
}

// Device time of each of `repeats` calls, microseconds; the first few are warm-up.
inline std::vector<double> device_times(cudaStream_t stream, int repeats,
                                        const std::function<void(int)>& enqueue) {
  Event begin, end;
  std::vector<double> times;
  for (int i = -5; i < repeats; ++i) {
    // Busy while what is timed is queued: else the host's time of launching it is in the interval.
    delay<<<1, 1, 0, stream>>>(50'000);
    CHECK(cudaEventRecord(begin.event, stream));
    enqueue(i + 5);
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end.event, stream));
    CHECK(cudaEventSynchronize(end.event));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
    if (i >= 0) times.push_back(milliseconds * 1e3);
  }
  return times;
}

inline std::vector<double> host_times(int repeats, const std::function<void(int)>& call) {
  std::vector<double> times;
  for (int i = -5; i < repeats; ++i) {
    const auto begin = Clock::now();
    call(i + 5);
    if (i >= 0) times.push_back(microseconds(begin));
  }
  return times;
}

struct Graph {
  cudaGraphExec_t exec = nullptr;
  Graph(cudaStream_t stream, const std::function<void()>& record) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    try {
      record();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    CHECK(cudaStreamEndCapture(stream, &graph));
    const cudaError_t code = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    CHECK(code);
  }
  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
};

// Cycles of the rounds -> microseconds, by the whole kernel's time.
inline std::string rounds_json(const std::vector<unsigned long long>& cycles, double kernel_us) {
  double total = 0;
  for (unsigned long long c : cycles) total += static_cast<double>(c);
  std::vector<double> times;
  for (unsigned long long c : cycles) times.push_back(static_cast<double>(c) / total * kernel_us);
  char mean[64];
  std::snprintf(mean, sizeof mean, ", \"mean_us\": %.4f}", kernel_us / cycles.size());
  std::string text = json(summary(times), times.size());
  text.pop_back();
  return text + mean;
}

inline void not_aborted(const unsigned* abort_flag) {
  unsigned value = 0;
  CHECK(cudaMemcpy(&value, abort_flag, sizeof value, cudaMemcpyDeviceToHost));
  if (value) throw std::runtime_error("a spin ran into its limit");
}
