# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""conan create . : kvstem as a Conan package; -o '&:sha256=True' adds the component sha256."""
import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0"


class KvstemConan(ConanFile):
    name = "kvstem"
    license = "Apache-2.0"
    description = "KV cache for LLM inference engines: compute every prefix once and find it again"
    topics = ("llm", "kv-cache", "inference", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"sha256": [True, False]}
    default_options = {"sha256": False}
    exports_sources = "CMakeLists.txt", "cmake/*", "include/*", "LICENSE"
    no_copy_source = True
    generators = ("CMakeDeps",)
    test_package_folder = "packaging/conan/test_package"

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include/kvstem/base/version.hpp"))
        self.version = ".".join(re.findall(r"#define KVSTEM_VERSION_\w+ (\d+)", text))

    def export(self):
        copy(self, "include/kvstem/base/version.hpp", self.recipe_folder, self.export_folder)

    def requirements(self):
        self.requires("xxhash/[>=0.8.0 <1]", transitive_headers=True)
        if self.options.sha256:
            self.requires("openssl/[>=3 <4]", transitive_headers=True, transitive_libs=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.variables["KVSTEM_WITH_OPENSSL"] = bool(self.options.sha256)
        for part in ("TESTS", "EXAMPLES", "BENCHMARKS"):
            toolchain.variables[f"KVSTEM_BUILD_{part}"] = False
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        rmdir(self, os.path.join(self.package_folder, "share"))  # Conan writes these files itself

    def package_id(self):
        del self.info.settings.os, self.info.settings.arch, self.info.settings.compiler, self.info.settings.build_type

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "kvstem")
        parts = {"kvstem": ["xxhash::libxxhash"], "testing": ["kvstem"]}
        if self.options.sha256:
            parts["sha256"] = ["kvstem", "openssl::crypto"]
        for name, requires in parts.items():
            part = self.cpp_info.components[name]
            part.set_property("cmake_target_name", f"kvstem::{name}")
            part.set_property("pkg_config_name", "kvstem" if name == "kvstem" else f"kvstem-{name}")
            part.requires = requires
            part.bindirs = part.libdirs = []
        if self.settings.os == "Linux":
            self.cpp_info.components["kvstem"].system_libs = ["pthread"]
