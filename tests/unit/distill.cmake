# Unit tests of distill.
dd2_test(unit/score_test.cc DEPS dd2_distill LABELS unit torch TORCH)
dd2_test(unit/flow_test.cc DEPS dd2_distill LABELS unit torch TORCH)
dd2_test(unit/losses_test.cc DEPS dd2_distill LABELS unit torch TORCH)

# dd2-parity against recorded numbers: a MAR head, image tokenizers, transformers and their filters from
# the reference classes, a score case from golden/make_score_case.py, and input that it must refuse.
if(DD2_WITH_TORCH)
  set(golden ${CMAKE_CURRENT_SOURCE_DIR}/golden)
  add_test(NAME parity.mar_head COMMAND dd2-parity ${golden}/mar_head_d2_w64.json --tolerance 2e-4)
  add_test(NAME parity.var_quantizer
    COMMAND dd2-parity ${golden}/var_quantizer_K10.json --tolerance 2e-4)
  add_test(NAME parity.var_tokenizer
    COMMAND dd2-parity ${golden}/var_tokenizer_ch32_64px.json --tolerance 2e-4)
  add_test(NAME parity.llamagen_tokenizer
    COMMAND dd2-parity ${golden}/llamagen_tokenizer_ch32_64px.json --tolerance 2e-4)
  add_test(NAME parity.var_transformer
    COMMAND dd2-parity ${golden}/var_transformer_d3_C128_H4.json --tolerance 2e-4)
  add_test(NAME parity.llamagen_gpt
    COMMAND dd2-parity ${golden}/llamagen_gpt_d3_C128_H4.json --tolerance 2e-4)
  add_test(NAME parity.var_filters COMMAND dd2-parity ${golden}/var_filters.json --tolerance 0)
  add_test(NAME parity.llamagen_filters COMMAND dd2-parity ${golden}/llamagen_filters.json --tolerance 0)
  add_test(NAME parity.score COMMAND dd2-parity ${golden}/score_v37_c5.json --tolerance 2e-5)
  add_test(NAME parity.score_fp64
    COMMAND dd2-parity ${golden}/score_v37_c5.json --fp64 --tolerance 1e-12)
  add_test(NAME parity.tolerance_fails
    COMMAND dd2-parity ${golden}/score_v37_c5.json --tolerance 1e-12)
  set_tests_properties(parity.tolerance_fails PROPERTIES WILL_FAIL ON)
  add_test(NAME parity.ragged COMMAND dd2-parity ${golden}/bad_ragged.json)
  set_tests_properties(parity.ragged PROPERTIES PASS_REGULAR_EXPRESSION "'logp' is ragged: row 1")
  add_test(NAME parity.impossible_row COMMAND dd2-parity ${golden}/bad_impossible_row.json)
  set_tests_properties(parity.impossible_row PROPERTIES
    PASS_REGULAR_EXPRESSION "logp.1. has no possible code")
  set_tests_properties(parity.mar_head parity.var_quantizer parity.var_tokenizer
    parity.llamagen_tokenizer parity.var_transformer parity.llamagen_gpt parity.var_filters
    parity.llamagen_filters parity.score parity.score_fp64 parity.tolerance_fails
    parity.ragged parity.impossible_row PROPERTIES LABELS "unit;torch" TIMEOUT 60)
endif()
