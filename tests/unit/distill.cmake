# Unit tests of distill.
dd2_test(unit/score_test.cc DEPS dd2_distill LABELS unit torch TORCH)
dd2_test(unit/losses_test.cc DEPS dd2_distill LABELS unit torch TORCH)
