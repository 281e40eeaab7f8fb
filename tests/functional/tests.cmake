# Tests that start real processes.

# The promise of the project, each under two seeds: bits do not depend on the number of ranks, on
# kills, or on the score cache.
if(DD2_WITH_TORCH)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  foreach(name world_size resume cache recovery)
    foreach(seed 1 2)
      add_test(NAME functional.${name}.seed${seed}
        COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/${name}_test.py ${seed})
      list(APPEND dd2_functional functional.${name}.seed${seed})
    endforeach()
  endforeach()
  add_test(NAME functional.world_size.scales
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/world_size_test.py 1 fashion-mnist-var)
  list(APPEND dd2_functional functional.world_size.scales)
  foreach(name memory elastic incidents control checkpoint_tools supervise bad_input doctor import released plan rehearsal fid device device_commands)
    add_test(NAME functional.${name}
      COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/${name}_test.py)
    list(APPEND dd2_functional functional.${name})
  endforeach()
  # A Slurm of its own; skipped, visibly, where none can be started (it says why).
  foreach(name slurm slurm_jobs)
    add_test(NAME functional.${name}
      COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/${name}_test.py)
    set_tests_properties(functional.${name} PROPERTIES SKIP_RETURN_CODE 77)
    list(APPEND dd2_functional functional.${name})
  endforeach()
  # The long run, by hand: scripts/chaos --faults 200 (docs/RELIABILITY.md).
  add_test(NAME functional.chaos COMMAND ${PROJECT_SOURCE_DIR}/scripts/chaos --faults 10 --seed 1)
  list(APPEND dd2_functional functional.chaos)
  set_tests_properties(${dd2_functional} PROPERTIES LABELS functional TIMEOUT 900 PROCESSORS 2
    ENVIRONMENT "DD2_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  # They wait for Slurm most of the time, or start one process after the other: side by side.
  set_tests_properties(functional.slurm functional.slurm_jobs functional.import functional.doctor
    functional.checkpoint_tools functional.device_commands PROPERTIES PROCESSORS 1)
  # The longest begin first, or nothing is left that could run beside their ends.
  set_tests_properties(functional.slurm functional.slurm_jobs PROPERTIES COST 1000)
endif()
