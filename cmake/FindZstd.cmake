# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# Defines Zstd::Zstd. A package that brings its own CMake config wins (vcpkg, Conan); distributions often ship none.
find_package(zstd CONFIG QUIET)
foreach(target IN ITEMS zstd::libzstd zstd::libzstd_shared zstd::libzstd_static)
  if(TARGET ${target})
    add_library(Zstd::Zstd INTERFACE IMPORTED)
    target_link_libraries(Zstd::Zstd INTERFACE ${target})
    set(Zstd_FOUND TRUE)
    return()
  endif()
endforeach()
find_path(Zstd_INCLUDE_DIR zstd.h)
find_library(Zstd_LIBRARY zstd)
mark_as_advanced(Zstd_INCLUDE_DIR Zstd_LIBRARY)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Zstd REQUIRED_VARS Zstd_LIBRARY Zstd_INCLUDE_DIR)
if(Zstd_FOUND)
  add_library(Zstd::Zstd UNKNOWN IMPORTED)
  set_target_properties(Zstd::Zstd PROPERTIES
    IMPORTED_LOCATION "${Zstd_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${Zstd_INCLUDE_DIR}")
endif()
