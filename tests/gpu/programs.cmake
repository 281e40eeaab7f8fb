# What checks the device side on a machine with a GPU (scripts/gpu-check). Built everywhere: it loads
# libdd2_cuda.so when it runs.
dd2_executable(dd2-gpu-check SRCS gpu/main.cc gpu/measurements.cc DEPS dd2_gpu_group_checks dd2_gpu_checks dd2_device dd2_common)
if(DD2_CUDA)
  add_dependencies(dd2-gpu-check dd2_cuda)
endif()

# Without a GPU it ends at once with one clear line. (CUDA_VISIBLE_DEVICES: also where there is one.)
add_test(NAME gpu_check.no_device COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/gpu/no_device_test.sh
  ${PROJECT_SOURCE_DIR}/scripts/gpu-check $<TARGET_FILE_DIR:dd2-gpu-check>)
set_tests_properties(gpu_check.no_device PROPERTIES LABELS unit TIMEOUT 60)

# The trainer on a GPU; here on the far device, small, and what is timed beside it.
if(DD2_WITH_TORCH)
  dd2_executable(dd2-gpu-steps SRCS gpu/steps.cc gpu/random_networks.cc gpu/rival_case.cc DEPS dd2_engine dd2_device dd2_common TORCH)
  if(DD2_CUDA)
    add_dependencies(dd2-gpu-steps dd2_cuda)
  endif()
  add_dependencies(dd2-gpu-steps far_device)
  add_test(NAME gpu_steps.far_device COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/gpu/steps_test.sh
    $<TARGET_FILE_DIR:dd2-gpu-steps>)
  set_tests_properties(gpu_steps.far_device PROPERTIES LABELS "unit;torch" TIMEOUT 900
    ENVIRONMENT "DD2_DEVICE_LIBRARY=$<TARGET_FILE:far_device>;OMP_NUM_THREADS=1")
endif()
