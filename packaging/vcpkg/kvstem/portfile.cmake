# The port lives in the repository it builds, two folders up: vcpkg install kvstem --overlay-ports=packaging/vcpkg
cmake_path(SET source NORMALIZE "${CURRENT_PORT_DIR}/../../..")

vcpkg_check_features(OUT_FEATURE_OPTIONS feature_options FEATURES sha256 KVSTEM_WITH_OPENSSL)
vcpkg_cmake_configure(
  SOURCE_PATH "${source}"
  OPTIONS
    ${feature_options}
    -DKVSTEM_BUILD_TESTS=OFF
    -DKVSTEM_BUILD_EXAMPLES=OFF
    -DKVSTEM_BUILD_BENCHMARKS=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/kvstem)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug" "${CURRENT_PACKAGES_DIR}/share/cmake"
                    "${CURRENT_PACKAGES_DIR}/share/licenses")
vcpkg_install_copyright(FILE_LIST "${source}/LICENSE")
