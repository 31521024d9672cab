// The last recorded launch, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "record.h"

namespace py = pybind11;

namespace jat::emulator::record {

// A dict of plain lists; `events` has for each warp tuples (kind, object, value, ranges: bytes of int32 [n, 4]).
py::dict take_recording() {
  const Recording& recording = jat::emulator::record::recording();
  py::dict result;
  result["num_blocks"] = recording.num_blocks;
  result["cluster_size"] = recording.cluster_size;
  result["num_warps"] = recording.num_warps;
  py::list spaces, events;
  for (const Space& space : recording.spaces) spaces.append(py::make_tuple(space.name, space.bytes / 4));
  for (const auto& warp : recording.events) {
    py::list list;
    for (const Event& event : warp)
      list.append(py::make_tuple(static_cast<int>(event.kind), event.object, event.value,
                                 py::bytes(reinterpret_cast<const char*>(event.ranges.data()),
                                           event.ranges.size() * sizeof(int32_t))));
    events.append(list);
  }
  result["spaces"] = spaces;
  result["objects"] = recording.objects;
  result["events"] = events;
  return result;
}

void bind(py::module_& module) { module.def("take_recording", &take_recording); }

}  // namespace jat::emulator::record
