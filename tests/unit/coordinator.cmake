# Unit tests of coordinator.
dd2_test(unit/run_record_test.cc DEPS dd2_coordinator_api LABELS unit)
dd2_test(unit/coordinator_api_test.cc DEPS dd2_coordinator_api LABELS unit)
dd2_test(unit/http_server_test.cc DEPS dd2_coordinator_api dd2_cli_http LABELS unit)
dd2_test(unit/phase_scheduler_test.cc DEPS dd2_coordinator_core LABELS unit)
dd2_test(unit/checkpoint_ledger_test.cc DEPS dd2_coordinator_core LABELS unit)
dd2_test(unit/membership_test.cc DEPS dd2_coordinator_core LABELS unit)
dd2_test(unit/rendezvous_store_test.cc DEPS dd2_coordinator_core LABELS unit)
dd2_test(unit/run_core_test.cc DEPS dd2_coordinator_core LABELS unit)
