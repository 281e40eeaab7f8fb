# Unit tests of storage, and of common/file.h which it stands on.
dd2_test(unit/common_file_test.cc DEPS dd2_common LABELS unit)
dd2_test(unit/storage_checkpoint_test.cc DEPS dd2_storage LABELS unit)
dd2_test(unit/storage_journal_test.cc DEPS dd2_storage LABELS unit)
dd2_test(unit/storage_kv_test.cc DEPS dd2_storage LABELS unit)
dd2_test(unit/storage_processes_test.cc DEPS dd2_storage LABELS unit)
dd2_test(unit/storage_safetensors_test.cc DEPS dd2_storage LABELS unit)
dd2_test(unit/storage_score_cache_test.cc DEPS dd2_storage LABELS unit)
