dd2_test(unit/rng_test.cc DEPS dd2_common LABELS unit)
dd2_test(unit/config_test.cc DEPS dd2_common LABELS unit)
target_compile_definitions(config_test PRIVATE DD2_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
