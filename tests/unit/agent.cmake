# Unit tests of agent.
dd2_test(unit/agent_test.cc DEPS dd2_agent dd2_proto dd2_common LABELS unit)
target_compile_definitions(agent_test PRIVATE DD2_AGENT_BINARY="$<TARGET_FILE:dd2-agent>")
add_dependencies(agent_test dd2-agent)
dd2_test(unit/agent_state_test.cc DEPS dd2_agent dd2_proto dd2_common LABELS unit)
