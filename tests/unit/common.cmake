dd2_test(unit/rng_test.cc DEPS dd2_common LABELS unit)
