/* The functions of libcuda.so that jat_engine calls, without a GPU: it keeps count and fails when told to. */
#include <string.h>

static char failing_function[64];
static int failing_code;
static void* context = (void*)0x4000000000000004; /* the current one; a thread that has not used the GPU has none */
static int context_depth;
static int is_capturing, is_invalid, num_graphs, num_executables, num_launches;

static int code_of(const char* function) { return strcmp(function, failing_function) ? 0 : failing_code; }

/* Let every call of `function` fail from here on; "" for none. */
void stub_fail(const char* function, int code) {
  strncpy(failing_function, function, sizeof failing_function - 1);
  failing_code = code;
}

/* What a launch that fails within a capture may do to it. */
void stub_invalidate(void) { is_invalid = is_capturing; }

/* What a call in another thread, or for another device, finds. */
void stub_set_context(void* other) { context = other; }
int stub_context_depth(void) { return context_depth; }

int stub_is_capturing(void) { return is_capturing; }
int stub_num_alive(void) { return num_graphs + num_executables; }
int stub_num_launches(void) { return num_launches; }

int cuGetErrorString(int code, const char** text) {
  *text = code == 2 ? "out of memory" : code == 901 ? "operation failed due to a previous error during capture" : 0;
  return *text ? 0 : 1;
}

int cuCtxGetCurrent(void** current) {
  *current = context;
  return code_of("cuCtxGetCurrent");
}

static void* pushed_over;

int cuCtxPushCurrent_v2(void* pushed) {
  int code = code_of("cuCtxPushCurrent_v2");
  if (code || context_depth) return code ? code : 1;
  pushed_over = context;
  context = pushed;
  ++context_depth;
  return 0;
}

int cuCtxPopCurrent_v2(void** popped) {
  if (!context_depth) return 1;
  *popped = context;
  context = pushed_over;
  --context_depth;
  return 0;
}

int cuStreamCreate(void** stream, unsigned flags) {
  *stream = (void*)0x5;
  return flags == 1 ? code_of("cuStreamCreate") : 1;
}

int cuStreamBeginCapture_v2(void* stream, int mode) {
  int code = code_of("cuStreamBeginCapture_v2");
  if (stream != (void*)0x5 || mode != 1 || is_capturing) return 1;
  is_capturing = !code;
  return code;
}

int cuStreamEndCapture(void* stream, void** graph) {
  int code = code_of("cuStreamEndCapture");
  if (stream != (void*)0x5 || !is_capturing) return 1;
  if (is_invalid) code = 901;
  is_capturing = is_invalid = 0;
  *graph = code ? 0 : (void*)0x6;
  num_graphs += !code;
  return code;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  int code = code_of("cuGraphInstantiateWithFlags");
  if (graph != (void*)0x6 || flags) return 1;
  *executable = code ? 0 : (void*)0x7000000000000007; /* more than an int holds */
  num_executables += !code;
  return code;
}

int cuGraphDestroy(void* graph) {
  num_graphs -= graph == (void*)0x6;
  return 0;
}

int cuGraphLaunch(void* executable, void* stream) {
  if (context != (void*)0x4000000000000004) return 201;
  if (executable != (void*)0x7000000000000007 || stream != (void*)0x8000000000000008) return 1;
  ++num_launches;
  return code_of("cuGraphLaunch");
}

int cuGraphExecDestroy(void* executable) {
  if (context != (void*)0x4000000000000004) return 201;
  num_executables -= executable == (void*)0x7000000000000007;
  return 0;
}
