# The static checks of scripts/check, each a test of its own; only clang-tidy stays outside, for time.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
foreach(check layers coroutines sizes formatting)
  add_test(NAME lint.${check}
    COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/checks/${check}.py ${PROJECT_SOURCE_DIR})
  set_tests_properties(lint.${check} PROPERTIES LABELS lint TIMEOUT 60)
endforeach()
# And the checks themselves: each finds what it is for.
add_test(NAME lint.checks
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/lint/checks_test.py)
set_tests_properties(lint.checks PROPERTIES LABELS lint TIMEOUT 60)
