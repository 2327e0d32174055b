# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# Headers, the CMake package (one export set for each component) and the pkg-config files. Nothing installed holds an
# absolute path, so the prefix may be moved.
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/kvstem")

foreach(target IN LISTS kvstem_components)
  install(TARGETS ${target} EXPORT ${target}-targets FILE_SET HEADERS)
  install(EXPORT ${target}-targets NAMESPACE kvstem:: DESTINATION "${package_dir}")
endforeach()

configure_package_config_file(cmake/kvstem-config.cmake.in kvstem-config.cmake INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file(kvstem-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/kvstem-config.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/kvstem-config-version.cmake"
              cmake/FindxxHash.cmake
        DESTINATION "${package_dir}")

# xxHash and threads are "private" for pkg-config: their compile flags are wanted, their libraries are not.
file(CONFIGURE OUTPUT kvstem.pc @ONLY CONTENT [[
prefix=${pcfiledir}/../..
includedir=${prefix}/@CMAKE_INSTALL_INCLUDEDIR@

Name: kvstem
Description: @PROJECT_DESCRIPTION@
Version: @PROJECT_VERSION@
Requires.private: libxxhash
Cflags: -I${includedir}
Libs: -pthread
]])
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/kvstem.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
if(KVSTEM_WITH_OPENSSL)
  file(CONFIGURE OUTPUT kvstem-sha256.pc @ONLY CONTENT [[
Name: kvstem-sha256
Description: block keys by SHA-256 for kvstem
Version: @PROJECT_VERSION@
Requires: kvstem = @PROJECT_VERSION@, libcrypto
]])
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/kvstem-sha256.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
endif()
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/kvstem")
