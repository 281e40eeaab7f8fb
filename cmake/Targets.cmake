# How this project declares libraries, programs and tests.

# Everything of ours links this, nothing third-party does.
add_library(dd2_flags INTERFACE)
target_compile_options(dd2_flags INTERFACE
  -Wall -Wextra -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough
  $<$<BOOL:${DD2_WERROR}>:-Werror>
  $<$<NOT:$<BOOL:$<TARGET_PROPERTY:DD2_TORCH>>>:-Wpedantic;-Wconversion;-Wshadow;-Wold-style-cast>)
# g++ 12 warns about "literal" + std::string (GCC bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(dd2_flags INTERFACE -Wno-restrict)
endif()
if(DD2_SANITIZE)
  target_compile_options(dd2_flags INTERFACE -fsanitize=${DD2_SANITIZE}
    -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(dd2_flags INTERFACE -fsanitize=${DD2_SANITIZE})
  # With sanitizers g++ 12 is wrong about Asio's frame allocator and std::regex.
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(dd2_flags INTERFACE -Wno-mismatched-new-delete -Wno-maybe-uninitialized)
  else()
    # clang 14 cannot assemble coroutines with it.
    target_compile_options(dd2_flags INTERFACE -fno-sanitize=function)
  endif()
  if(DD2_SANITIZE MATCHES thread)
    target_compile_definitions(dd2_flags INTERFACE BOOST_ASIO_DISABLE_FENCED_BLOCK)
  endif()
endif()

# Targets with LibTorch (property DD2_TORCH): conversions between int and int64 are everywhere in
# that interface, so the warnings about them are off.
add_library(dd2_torch_flags INTERFACE)
target_link_libraries(dd2_torch_flags INTERFACE dd2_flags)

# The networks' kernels (worker/models), and the test that builds them again. Bits must not depend on how a loop was vectorised: no contraction.
# Vector types stay inside the files.
set(dd2_kernel_options -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi)

# dd2_library(NAME SRCS ... DEPS ... [TORCH]): a static library dd2_NAME. DEPS is the layer order made
# real: name left neighbours only. Sources are listed by hand.
function(dd2_library name)
  cmake_parse_arguments(ARG "TORCH" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(dd2_${name} STATIC ${ARG_SRCS})
  target_include_directories(dd2_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(dd2_${name} PUBLIC ${ARG_DEPS})
  if(ARG_TORCH)
    set_target_properties(dd2_${name} PROPERTIES DD2_TORCH ON)
    target_link_libraries(dd2_${name} PUBLIC dd2_torch PRIVATE dd2_torch_flags ${ARG_PRIVATE_DEPS})
  else()
    target_link_libraries(dd2_${name} PRIVATE dd2_flags ${ARG_PRIVATE_DEPS})
  endif()
endfunction()

# dd2_executable(NAME SRCS ... DEPS ... [TORCH])
function(dd2_executable name)
  cmake_parse_arguments(ARG "TORCH" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  if(ARG_TORCH)
    set_target_properties(${name} PROPERTIES DD2_TORCH ON)
    target_link_libraries(${name} PRIVATE ${ARG_DEPS} dd2_torch dd2_torch_flags)
  else()
    target_link_libraries(${name} PRIVATE ${ARG_DEPS} dd2_flags)
  endif()
  # Symbols of the static protobuf stay inside this program: LibTorch carries another version.
  target_link_options(${name} PRIVATE "LINKER:--exclude-libs,ALL")
endfunction()
