# Fuzzers: built by clang alone (preset fuzz). What they found is in corpus/, which the unit tests
# replay with every compiler.
option(DD2_FUZZ "Build the fuzzers (clang only)" OFF)
if(DD2_FUZZ)
  dd2_executable(torch_file_fuzz SRCS fuzz/torch_file_fuzz.cc DEPS dd2_storage)
  target_link_options(torch_file_fuzz PRIVATE -fsanitize=fuzzer)
endif()
