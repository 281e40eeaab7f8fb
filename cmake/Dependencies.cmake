# Third-party packages, each as one target. Where each comes from: scripts/setup, docs/BUILDING.md.
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(RocksDB REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(spdlog REQUIRED)
find_package(tl-expected REQUIRED)
find_package(CLI11 REQUIRED)
find_package(PNG REQUIRED)
find_package(ZLIB REQUIRED)
find_package(Boost 1.81 REQUIRED COMPONENTS json url)
find_library(DD2_XXHASH xxhash REQUIRED)

# Debian's static libprotobuf: LibTorch exports symbols of its own old copy (one definition must win).
find_library(DD2_PROTOBUF_STATIC libprotobuf.a REQUIRED)

if(DD2_WITH_TORCH)
  find_package(MPI REQUIRED COMPONENTS CXX)
  set(dd2_torch ${DD2_TORCH_ROOT}/torch)
  if(NOT EXISTS ${dd2_torch}/lib/libtorch_cpu.so)
    message(FATAL_ERROR "LibTorch is not under ${DD2_TORCH_ROOT}: run scripts/setup, or set DD2_TORCH_ROOT")
  endif()
  # Not find_package(Torch): it puts its own protobuf and fmt headers in front of the system's and
  # runs GPU probes. -idirafter puts them behind.
  add_library(dd2_torch INTERFACE)
  target_compile_options(dd2_torch INTERFACE
    "SHELL:-idirafter ${dd2_torch}/include" "SHELL:-idirafter ${dd2_torch}/include/torch/csrc/api/include")
  target_compile_definitions(dd2_torch INTERFACE USE_DISTRIBUTED USE_C10D_GLOO)
  target_link_libraries(dd2_torch INTERFACE ${dd2_torch}/lib/libtorch_cpu.so ${dd2_torch}/lib/libc10.so)
  target_link_options(dd2_torch INTERFACE "LINKER:-rpath,${dd2_torch}/lib")
endif()
