# Unit tests of engine.
dd2_test(unit/frechet_test.cc DEPS dd2_evaluation LABELS unit torch TORCH)
dd2_test(unit/png_test.cc DEPS dd2_evaluation LABELS unit torch TORCH)
dd2_test(unit/evaluator_test.cc DEPS dd2_evaluation LABELS unit torch TORCH)
dd2_test(unit/export_test.cc DEPS dd2_evaluation LABELS unit torch TORCH)
dd2_test(unit/teacher_data_test.cc DEPS dd2_engine dd2_storage LABELS unit torch TORCH)
dd2_test(unit/trainer_test.cc DEPS dd2_engine dd2_storage LABELS unit torch TORCH)
dd2_test(unit/control_client_test.cc DEPS dd2_engine LABELS unit torch TORCH)
dd2_test(unit/state_sync_test.cc DEPS dd2_engine dd2_coordinator_core LABELS unit torch TORCH)
dd2_test(unit/checkpoint_saver_test.cc DEPS dd2_engine dd2_storage dd2_test_crash LABELS unit torch TORCH)
dd2_test(unit/dataset_test.cc DEPS dd2_training ZLIB::ZLIB LABELS unit torch TORCH)
dd2_test(unit/teacher_training_test.cc DEPS dd2_training ZLIB::ZLIB LABELS unit torch TORCH)
# g++ 12 takes the destructor of an undefined at::Tensor inside a Result for a delete of a static.
set_source_files_properties(unit/evaluator_test.cc PROPERTIES COMPILE_OPTIONS -Wno-free-nonheap-object)
