# Unit tests of worker/kernels. None needs a GPU, CUDA or LibTorch.

# The CPU's kernels without LibTorch: what the device's are compared with.
add_library(dd2_cpu_kernels OBJECT ${PROJECT_SOURCE_DIR}/worker/distill/score_kernel.cc
                                   ${PROJECT_SOURCE_DIR}/worker/parallel/update_kernels.cc)
set_target_properties(dd2_cpu_kernels PROPERTIES DD2_TORCH ON)  # for its warnings only
target_include_directories(dd2_cpu_kernels PRIVATE ${PROJECT_SOURCE_DIR})
target_compile_options(dd2_cpu_kernels PRIVATE ${dd2_kernel_options})
target_link_libraries(dd2_cpu_kernels PRIVATE dd2_flags)
dd2_library(gpu_checks SRCS gpu/kernel_checks.cc gpu/row_checks.cc $<TARGET_OBJECTS:dd2_cpu_kernels> DEPS dd2_device dd2_common)

# The device's kernels as C++ for the CPU.
set(device_kernels ${PROJECT_SOURCE_DIR}/worker/kernels/adam.cu ${PROJECT_SOURCE_DIR}/worker/kernels/chunk_squares.cu
                   ${PROJECT_SOURCE_DIR}/worker/kernels/modulate.cu ${PROJECT_SOURCE_DIR}/worker/kernels/random.cu
                   ${PROJECT_SOURCE_DIR}/worker/kernels/score.cu ${PROJECT_SOURCE_DIR}/worker/kernels/unit_length.cu)
set(device_kernel_options -xc++ -ffp-contract=off -fno-math-errno -Wno-unknown-pragmas -Wno-conversion)
# The same bits, without a call of the C library for each fmaf.
include(CheckCXXSourceRuns)
set(CMAKE_REQUIRED_FLAGS -mfma)
check_cxx_source_runs("#include <cmath>
int main(int count, char**) { return std::fma(double(count), 2.0, -2.0) == 2.0 * (count - 1) ? 0 : 1; }" DD2_CPU_HAS_FMA)
unset(CMAKE_REQUIRED_FLAGS)
if(DD2_CPU_HAS_FMA)
  list(APPEND device_kernel_options -mfma)
endif()
set_source_files_properties(${device_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${device_kernel_options}")
dd2_library(test_host_device
  SRCS support/host_device.cc support/cuda_on_host/cuda_on_host.cc ${device_kernels}
  DEPS dd2_device dd2_common)
target_include_directories(dd2_test_host_device BEFORE PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/support/cuda_on_host)

dd2_test(unit/device_kernels_test.cc DEPS dd2_test_host_device dd2_gpu_checks LABELS unit)
dd2_test(unit/nccl_group_test.cc DEPS dd2_test_host_device LABELS unit)

# The far device: a device library whose memory the host cannot touch, for LibTorch and the engine.
if(DD2_WITH_TORCH)
  add_library(far_device SHARED
    support/far_device/autocast.cc support/far_device/library.cc support/far_device/memory.cc
    support/far_device/torch_backend.cc
    support/cuda_on_host/cuda_on_host.cc ${PROJECT_SOURCE_DIR}/common/check.cc ${device_kernels})
  target_include_directories(far_device BEFORE PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/support/cuda_on_host ${PROJECT_SOURCE_DIR})
  target_link_libraries(far_device PRIVATE dd2_torch dd2_torch_flags)
  set_target_properties(far_device PROPERTIES DD2_TORCH ON LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
endif()

add_library(other_device_library SHARED support/other_device_library.cc)
target_include_directories(other_device_library PRIVATE ${PROJECT_SOURCE_DIR})
target_link_libraries(other_device_library PRIVATE dd2_flags)
dd2_test(unit/device_test.cc DEPS dd2_test_host_device LABELS unit)
target_compile_definitions(device_test PRIVATE
  DD2_OTHER_DEVICE_LIBRARY="$<TARGET_FILE:other_device_library>" $<$<BOOL:${DD2_CUDA}>:DD2_HAS_CUDA>)
add_dependencies(device_test other_device_library)
if(DD2_CUDA)
  add_dependencies(device_test dd2_cuda)
endif()
