# Unit tests of models.
dd2_test(unit/models_networks_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_teacher_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_filters_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_tokenizers_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_transformers_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_files_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_scales_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_llamagen_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/inception_test.cc DEPS dd2_models LABELS unit torch TORCH)
if(DD2_WITH_TORCH)
  foreach(test models_tokenizers_test models_transformers_test inception_test)
    target_compile_definitions(${test} PRIVATE DD2_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  endforeach()
endif()
dd2_test(unit/network_gradients_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/fused_blocks_test.cc DEPS dd2_models LABELS unit torch TORCH)
if(DD2_WITH_TORCH)
  target_compile_definitions(fused_blocks_test PRIVATE DD2_FAR_DEVICE="$<TARGET_FILE:far_device>")
  add_dependencies(fused_blocks_test far_device)
endif()

# The vectorised kernels: as the library picks them, then each form alone.
dd2_test(unit/kernel_bits_test.cc DEPS dd2_distill dd2_models LABELS unit torch TORCH)
set(kernel_cpu_x86-64-v3 avx2)
set(kernel_cpu_x86-64-v4 avx512vl)
foreach(form plain x86-64-v3 x86-64-v4)
  # Objects of their own: only the kernels may use what the CPU may lack, the test asks for it first.
  add_library(kernels_${form} OBJECT ${PROJECT_SOURCE_DIR}/worker/models/row_kernels.cc
                                     ${PROJECT_SOURCE_DIR}/worker/models/attention_kernel.cc
                                     ${PROJECT_SOURCE_DIR}/worker/distill/score_kernel.cc)
  set_target_properties(kernels_${form} PROPERTIES DD2_TORCH ON)  # for its warnings only
  target_include_directories(kernels_${form} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(kernels_${form} PRIVATE DD2_SIMD_CLONES=)
  target_compile_options(kernels_${form} PRIVATE ${dd2_kernel_options})
  target_link_libraries(kernels_${form} PRIVATE dd2_flags)
  dd2_executable(kernel_bits_${form}_test
    SRCS unit/kernel_bits_test.cc $<TARGET_OBJECTS:kernels_${form}> DEPS dd2_common GTest::gmock_main)
  if(NOT form STREQUAL plain)
    target_compile_options(kernels_${form} PRIVATE -march=${form})
    target_compile_definitions(kernel_bits_${form}_test PRIVATE DD2_KERNEL_BITS_CPU="${kernel_cpu_${form}}")
  endif()
  gtest_discover_tests(kernel_bits_${form}_test TEST_SUFFIX ".${form}" PROPERTIES LABELS unit)
endforeach()
