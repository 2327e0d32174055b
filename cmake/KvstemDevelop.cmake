# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# What our own programs (tests, examples, benchmarks) are compiled with. Nothing here reaches those who link kvstem.
if(NOT CMAKE_CXX_COMPILER_LAUNCHER AND PROJECT_IS_TOP_LEVEL)
  find_program(KVSTEM_CCACHE ccache)
  mark_as_advanced(KVSTEM_CCACHE)
  if(KVSTEM_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${KVSTEM_CCACHE}")
  endif()
endif()
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)

add_library(kvstem_warnings INTERFACE)
target_compile_options(kvstem_warnings INTERFACE -Wall -Wextra -Wpedantic $<$<BOOL:${KVSTEM_WERROR}>:-Werror>)
