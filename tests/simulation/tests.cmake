# The control plane on a simulated network: one seed, one history.
dd2_library(simulation
  SRCS simulation/sim_agent.cc simulation/sim_coordinator.cc simulation/sim_worker.cc
       simulation/simulation.cc simulation/world.cc
  DEPS dd2_coordinator_core dd2_agent dd2_proto dd2_common)
dd2_executable(dd2-sim SRCS simulation/main.cc DEPS dd2_simulation)
add_test(NAME simulation.2000_seeds COMMAND dd2-sim --seeds 2000)
set_tests_properties(simulation.2000_seeds PROPERTIES LABELS simulation TIMEOUT 600)
