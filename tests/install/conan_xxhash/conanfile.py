# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
from conan import ConanFile


class SystemXxhash(ConanFile):
    """Stands for the xxhash of a Conan remote, so that our recipe can be tested without one: the system's header."""

    name = "xxhash"
    version = "0.8.1"
    package_type = "header-library"

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "xxHash")
        part = self.cpp_info.components["libxxhash"]
        part.set_property("cmake_target_name", "xxHash::xxhash")
        part.includedirs = part.libdirs = part.bindirs = []
