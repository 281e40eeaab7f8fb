# Our side of benchmarks that need no whole run.
if(DD2_WITH_TORCH)
  dd2_executable(dd2-bench-checkpoint SRCS bench/checkpoint_bench.cc DEPS dd2_engine TORCH)
endif()
dd2_executable(dd2-bench-score SRCS bench/score_bench.cc DEPS dd2_gpu_checks)
# A load on the control plane. Its check is a test: whether the protocol holds, never how fast.
dd2_executable(dd2-bench-control
  SRCS bench/control/control_load.cc bench/control/load_cluster.cc bench/control/load_coordinator.cc
       bench/control/load_domain.cc bench/control/load_link.cc bench/control/load_scenario.cc
       bench/control/load_watchers.cc
  DEPS dd2_cli_http dd2_storage dd2_proto dd2_common)
add_dependencies(dd2-bench-control dd2-coordinator)
add_test(NAME control_load.check COMMAND dd2-bench-control --check)
set_tests_properties(control_load.check PROPERTIES LABELS functional TIMEOUT 300)
