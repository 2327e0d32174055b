# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# cmake -DPORT_DIR=... -DOUT=... -DFEATURES=... -P run_vcpkg_port.cmake
# Runs a portfile with stand-ins for the functions of vcpkg that it calls, so that the port can be tested without vcpkg.
cmake_minimum_required(VERSION 3.25)
file(READ "${PORT_DIR}/vcpkg.json" manifest)
string(JSON PORT GET "${manifest}" name)
set(CURRENT_PORT_DIR "${PORT_DIR}")
set(CURRENT_PACKAGES_DIR "${OUT}/packages/${PORT}")
set(build "${OUT}/buildtrees/${PORT}")
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}" "${build}")

foreach(feature IN LISTS FEATURES)
  string(JSON description ERROR_VARIABLE error GET "${manifest}" features "${feature}" description)
  if(error)
    message(FATAL_ERROR "the manifest has no feature ${feature}")
  endif()
endforeach()

function(vcpkg_check_features)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "OUT_FEATURE_OPTIONS" "FEATURES")
  set(options "")
  while(arg_FEATURES)
    list(POP_FRONT arg_FEATURES feature option)
    if(feature IN_LIST FEATURES)
      list(APPEND options -D${option}=ON)
    else()
      list(APPEND options -D${option}=OFF)
    endif()
  endwhile()
  set(${arg_OUT_FEATURE_OPTIONS} ${options} PARENT_SCOPE)
endfunction()

function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
  execute_process(COMMAND_ERROR_IS_FATAL ANY COMMAND ${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${build} -G Ninja
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} ${arg_OPTIONS})
endfunction()

function(vcpkg_cmake_install)
  execute_process(COMMAND_ERROR_IS_FATAL ANY COMMAND ${CMAKE_COMMAND} --build ${build} --target install)
endfunction()

function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "CONFIG_PATH" "")
  file(GLOB files "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}/*")
  if(NOT files)
    message(FATAL_ERROR "nothing in ${arg_CONFIG_PATH}")
  endif()
  file(COPY ${files} DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
  # The package was configured for share/cmake/PORT and now lies one level higher, which vcpkg corrects in the file.
  file(READ "${CURRENT_PACKAGES_DIR}/share/${PORT}/${PORT}-config.cmake" config)
  string(REPLACE "/../../../" "/../../" config "${config}")
  file(WRITE "${CURRENT_PACKAGES_DIR}/share/${PORT}/${PORT}-config.cmake" "${config}")
  file(GLOB targets "${CURRENT_PACKAGES_DIR}/share/${PORT}/*-targets.cmake")
  foreach(file IN LISTS targets)
    file(READ "${file}" text)
    string(REGEX REPLACE "(get_filename_component\\(_IMPORT_PREFIX \"\\\${_IMPORT_PREFIX}\" PATH\\)\n)(get_filename_component\\(_IMPORT_PREFIX \"\\\${_IMPORT_PREFIX}\" PATH\\)\n)" "\\1" text "${text}")
    file(WRITE "${file}" "${text}")
  endforeach()
  file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}")
endfunction()

function(vcpkg_fixup_pkgconfig)
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "FILE_LIST")
  file(INSTALL ${arg_FILE_LIST} DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}" RENAME copyright)
endfunction()

include("${PORT_DIR}/portfile.cmake")

# What vcpkg's own check after a build insists on.
foreach(bad IN ITEMS debug lib share/cmake share/licenses)
  if(EXISTS "${CURRENT_PACKAGES_DIR}/${bad}")
    message(FATAL_ERROR "${bad} must not be in the package")
  endif()
endforeach()
foreach(wanted IN ITEMS share/${PORT}/copyright share/${PORT}/${PORT}-config.cmake include/${PORT})
  if(NOT EXISTS "${CURRENT_PACKAGES_DIR}/${wanted}")
    message(FATAL_ERROR "${wanted} is missing from the package")
  endif()
endforeach()
message(STATUS "port ${PORT} with features '${FEATURES}' is as it should be")
