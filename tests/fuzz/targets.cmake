# Fuzzers: built by clang alone (preset fuzz). What they found is in corpus/, which the unit tests
# replay with every compiler.
option(DD2_FUZZ "Build the fuzzers (clang only)" OFF)
if(DD2_FUZZ)
  # Not dd2_executable: the sanitizer's operator new must stay visible to libstdc++.
  add_executable(torch_file_fuzz fuzz/torch_file_fuzz.cc)
  target_include_directories(torch_file_fuzz PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(torch_file_fuzz PRIVATE dd2_storage dd2_flags)
  target_link_options(torch_file_fuzz PRIVATE -fsanitize=fuzzer)
endif()
