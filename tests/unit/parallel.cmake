# Unit tests of parallel.
dd2_test(unit/exact_update_test.cc DEPS dd2_parallel LABELS unit torch TORCH)
dd2_library(test_store SRCS support/store_server.cc DEPS dd2_proto dd2_common)
dd2_test(unit/gloo_collectives_test.cc DEPS dd2_test_store dd2_parallel LABELS unit torch TORCH)
