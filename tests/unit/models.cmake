# Unit tests of models.
dd2_test(unit/models_networks_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_teacher_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/models_files_test.cc DEPS dd2_models LABELS unit torch TORCH)
dd2_test(unit/network_gradients_test.cc DEPS dd2_models LABELS unit torch TORCH)
