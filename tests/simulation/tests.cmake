# The control plane on a simulated network: one seed, one history.
dd2_library(simulation
  SRCS simulation/sim_agent.cc simulation/sim_coordinator.cc simulation/sim_group.cc simulation/sim_worker.cc
       simulation/simulation.cc simulation/world.cc
  DEPS dd2_coordinator_core dd2_agent dd2_proto dd2_common)
dd2_executable(dd2-sim SRCS simulation/main.cc DEPS dd2_simulation)
add_test(NAME simulation.2000_seeds COMMAND dd2-sim --seeds 2000)
set_tests_properties(simulation.2000_seeds PROPERTIES LABELS simulation TIMEOUT 600)

# The simulation bites: with one deliberate fault in a core, some history breaks an invariant.
# dd2_mutant(NAME FILE SEEDS OLD NEW): FILE of coordinator/ with OLD replaced, linked before the true one.
function(dd2_mutant name file seeds old new)
  file(READ ${PROJECT_SOURCE_DIR}/coordinator/${file} text)
  string(REPLACE "${old}" "${new}" mutated "${text}")
  if(mutated STREQUAL text)
    message(FATAL_ERROR "mutant ${name}: coordinator/${file} does not hold the text that it replaces")
  endif()
  set(source ${CMAKE_CURRENT_BINARY_DIR}/mutants/${name}/${file})
  file(CONFIGURE OUTPUT ${source} CONTENT "${mutated}" @ONLY)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/coordinator/${file})
  dd2_executable(dd2-sim-${name} SRCS simulation/main.cc ${source} DEPS dd2_simulation)
  add_test(NAME simulation.finds.${name} COMMAND dd2-sim-${name} --seeds ${seeds})
  set_tests_properties(simulation.finds.${name} PROPERTIES LABELS simulation TIMEOUT 600
    PASS_REGULAR_EXPRESSION "seed [0-9]+: " FAIL_REGULAR_EXPRESSION "everything held")
endfunction()
# A rank that holds the gradient of the missing update goes on without doing it.
dd2_mutant(lost_update regroup_plan.cc 2000
  ".means = proto::GenerationMember::ROLL" ".means = proto::GenerationMember::KEEP")
# A checkpoint is committed while a part is missing.
dd2_mutant(early_commit checkpoint_ledger.cc 2000
  "pending->parts.size()) < world_size_" "pending->parts.size()) < world_size_ - 1")
# The record does not go back with the run.
dd2_mutant(record_goes_on run_core_generation.cc 2000
  "  PositionAction position;" "  return;\n  PositionAction position;")
# A broken generation and the next one have the same number.
dd2_mutant(same_generation membership.cc 2000
  "generation_ = Generation(generation_.value() + 1);" "")
# Survivors are not told what they may still do.
dd2_mutant(no_lease run_core_generation.cc 2000
  "if (plan.start) SendGrantedLease(worker->connection, *plan.start, out);" "")
# A snapshot in memory is taken although the record lacks what was done before it.
dd2_mutant(hole_in_record run_core_generation.cc 4000
  "<= scheduler_.position();" ">= RunPosition();")
