# Our side of benchmarks that need no whole run.
if(DD2_WITH_TORCH)
  dd2_executable(dd2-bench-checkpoint SRCS bench/checkpoint_bench.cc DEPS dd2_engine TORCH)
endif()
