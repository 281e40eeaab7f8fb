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
  add_test(NAME functional.elastic
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/elastic_test.py)
  list(APPEND dd2_functional functional.elastic)
  add_test(NAME functional.incidents
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/incidents_test.py)
  list(APPEND dd2_functional functional.incidents)
  add_test(NAME functional.control
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/control_test.py)
  list(APPEND dd2_functional functional.control)
  add_test(NAME functional.checkpoint_tools
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/checkpoint_tools_test.py)
  list(APPEND dd2_functional functional.checkpoint_tools)
  add_test(NAME functional.supervise
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/supervise_test.py)
  list(APPEND dd2_functional functional.supervise)
  add_test(NAME functional.bad_input
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/functional/bad_input_test.py)
  list(APPEND dd2_functional functional.bad_input)
  set_tests_properties(${dd2_functional} PROPERTIES LABELS functional TIMEOUT 900 PROCESSORS 2
    ENVIRONMENT "DD2_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
endif()
