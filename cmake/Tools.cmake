# Faster compiling and linking where the tools are there; the results are the same without.
find_program(DD2_CCACHE ccache)
if(DD2_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${DD2_CCACHE})
endif()
find_program(DD2_MOLD mold)
if(DD2_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
