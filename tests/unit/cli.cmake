# Unit tests of cli.
dd2_test(unit/report_test.cc DEPS dd2_report LABELS unit)
dd2_test(unit/cli_incidents_test.cc DEPS dd2_report LABELS unit)
dd2_test(unit/cli_checkpoint_prune_test.cc DEPS dd2_cli dd2_test_crash LABELS unit)
dd2_test(unit/cli_progress_test.cc DEPS dd2_cli LABELS unit)
dd2_test(unit/cli_restart_policy_test.cc DEPS dd2_cli LABELS unit)
dd2_test(unit/cli_result_table_test.cc DEPS dd2_cli LABELS unit)
dd2_test(unit/cli_run_files_test.cc DEPS dd2_cli LABELS unit)
dd2_test(unit/cli_run_folder_test.cc DEPS dd2_cli LABELS unit)
