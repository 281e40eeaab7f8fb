# Unit tests of storage.
dd2_test(unit/storage_safetensors_test.cc DEPS dd2_storage LABELS unit)
