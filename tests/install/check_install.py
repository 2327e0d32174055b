# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_install.py CASE --source DIR --work DIR --cmake CMAKE --compiler CXX: one way of taking the library into a project."""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys


class Check:
    """The ways of taking the library, one method each. A method that returns has passed."""

    def __init__(self, args: argparse.Namespace):
        self.source, self.work = pathlib.Path(args.source), pathlib.Path(args.work)
        self.cmake, self.compiler = args.cmake, args.compiler
        self.version = ".".join(
            re.search(rf"KVSTEM_VERSION_{part} (\d+)", (self.source / "include/kvstem/base/version.hpp").read_text())[1]
            for part in ("MAJOR", "MINOR", "PATCH")
        )
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def run(self, *command, fails=False, env=None) -> str:
        """Runs a command, which must succeed, or fail if `fails`; returns what it wrote."""
        text = [str(part) for part in command]
        done = subprocess.run(
            text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env={**os.environ, **(env or {})}
        )
        if (done.returncode != 0) != fails:
            sys.exit(f"$ {' '.join(text)}\n{done.stdout}\nstatus {done.returncode}, expected {'a failure' if fails else '0'}")
        return done.stdout

    def configure(self, source, build, *options, fails=False) -> str:
        return self.run(
            self.cmake, "-S", source, "-B", self.work / build, "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={self.compiler}",
            *options, fails=fails,
        )  # fmt: skip

    def build_and_run(self, build):
        self.run(self.cmake, "--build", self.work / build)
        self.expect_version(self.run(self.work / build / "downstream"))

    def expect_version(self, output):
        if self.version not in output:
            sys.exit(f"the program should have named version {self.version}, and said:\n{output}")

    def installed(self, *options) -> pathlib.Path:
        """Installs the library, then moves it: nothing may depend on where it was installed first."""
        self.configure(
            self.source, "library", "-DKVSTEM_BUILD_TESTS=OFF", "-DKVSTEM_BUILD_EXAMPLES=OFF",
            "-DKVSTEM_BUILD_BENCHMARKS=OFF", f"-DCMAKE_INSTALL_PREFIX={self.work / 'first'}", *options,
        )  # fmt: skip
        self.run(self.cmake, "--build", self.work / "library", "--target", "install")
        prefix = self.work / "moved"
        (self.work / "first").rename(prefix)
        for file in prefix.rglob("*"):
            if file.is_file() and str(self.work) in file.read_text(encoding="utf-8"):
                sys.exit(f"{file} names the folder it was installed to")
        have = {path.relative_to(prefix / "include").as_posix() for path in (prefix / "include").rglob("*.h*")}
        want = {path.relative_to(self.source / "include").as_posix() for path in (self.source / "include").rglob("*.h*")}
        if want - have - {"kvstem/model/sha256.hpp"} or have - want:
            sys.exit(f"headers not installed: {want - have}; installed by mistake: {have - want}")
        return prefix

    def consumer(self, name, find_package) -> pathlib.Path:
        """A project of one find_package call that must leave the targets it asked for."""
        folder = self.work / name
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.25)\nproject({name} LANGUAGES CXX)\n{find_package}\n"
        )
        return folder

    def find_package(self):
        prefix = self.installed("-DKVSTEM_WITH_OPENSSL=ON")
        at = f"-DCMAKE_PREFIX_PATH={prefix}"
        self.configure(self.source / "examples/downstream", "downstream", at)
        self.build_and_run("downstream")
        wants = """find_package(kvstem REQUIRED COMPONENTS sha256 testing)
foreach(target IN ITEMS kvstem sha256 testing)
  if(NOT TARGET kvstem::${target})
    message(FATAL_ERROR "no kvstem::${target}")
  endif()
endforeach()"""
        self.configure(self.consumer("components", wants), "components-build", at)
        plain = """find_package(kvstem REQUIRED)
if(TARGET kvstem::sha256 OR TARGET OpenSSL::Crypto)
  message(FATAL_ERROR "OpenSSL came without being asked for")
endif()"""
        self.configure(self.consumer("plain", plain), "plain-build", at)
        missing = self.consumer("missing", "find_package(kvstem REQUIRED COMPONENTS cuckoo)")
        if "cuckoo" not in self.configure(missing, "missing-build", at, fails=True):
            sys.exit("the message should name the missing component")
        newer = self.consumer("newer", "find_package(kvstem 0.999 REQUIRED)")
        self.configure(newer, "newer-build", at, fails=True)

    def pkg_config(self):
        prefix = self.installed("-DKVSTEM_WITH_OPENSSL=ON")
        env = {"PKG_CONFIG_PATH": str(prefix / "share/pkgconfig")}
        self.expect_version(self.run("pkg-config", "--modversion", "kvstem", env=env))
        flags = self.run("pkg-config", "--cflags", "--libs", "kvstem", env=env).split()
        if "-lxxhash" in flags:
            sys.exit("xxHash is inlined, and must not be linked")
        program = self.work / "consumer"
        self.run(self.compiler, "-std=c++20", self.source / "examples/downstream/main.cpp", "-o", program, *flags)
        self.expect_version(self.run(program))
        if "-lcrypto" not in self.run("pkg-config", "--libs", "kvstem-sha256", env=env).split():
            sys.exit("kvstem-sha256 should link libcrypto")

    def subdirectory(self):
        self.configure(self.source / "tests/install/subdirectory", "build", f"-DKVSTEM_SOURCE={self.source}")
        self.build_and_run("build")

    def without_openssl(self):
        prefix = self.installed("-DKVSTEM_WITH_OPENSSL=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON")
        if list(prefix.rglob("*sha256*")):
            sys.exit("the component sha256 was installed without OpenSSL")
        at = f"-DCMAKE_PREFIX_PATH={prefix}"
        self.configure(self.source / "examples/downstream", "downstream", at)
        self.build_and_run("downstream")
        wants = self.consumer("wants", "find_package(kvstem REQUIRED COMPONENTS sha256)")
        if "sha256" not in self.configure(wants, "wants-build", at, fails=True):
            sys.exit("the message should name the missing component")

    def vcpkg_port(self):
        port = self.source / "packaging/vcpkg/kvstem"
        for features in ("", "sha256"):
            self.run(
                self.cmake, f"-DPORT_DIR={port}", f"-DSOURCE_DIR={self.source}", f"-DOUT={self.work}",
                f"-DFEATURES={features}", "-P", self.source / "tests/install/run_vcpkg_port.cmake",
            )  # fmt: skip
            package = self.work / "packages/kvstem"
            if (package / "include/kvstem/model/sha256.hpp").exists() != (features == "sha256"):
                sys.exit(f"features '{features}': sha256.hpp is installed if and only if it was asked for")
            self.configure(
                self.source / "examples/downstream", f"downstream{features}", f"-Dkvstem_DIR={package / 'share/kvstem'}"
            )
            self.build_and_run(f"downstream{features}")

    def conan(self):
        """The recipe as it is, in a Conan home of its own that knows no remote."""
        conan = self.source / "build/tools/bin/conan"
        env = {"CONAN_HOME": str(self.work / "home"), "CXX": str(self.compiler)}
        self.run(conan, "remote", "disable", "*", env=env)
        self.run(conan, "profile", "detect", env=env)
        self.run(conan, "export", self.source / "tests/install/conan_xxhash", env=env)
        created = self.run(
            conan, "create", self.source, "--build=missing", "-s:a", "compiler.cppstd=20",
            "-c:a", f"tools.cmake.cmake_layout:test_folder={self.work / 'test'}",
            "-c:a", "tools.cmake.cmaketoolchain:user_presets=", env=env,
        )  # fmt: skip
        self.expect_version(created.partition("Running test()")[2])

    def versions(self):
        """Every package description names the version and licence of the header."""
        for name in ("vcpkg.json", "packaging/vcpkg/kvstem/vcpkg.json"):
            manifest = json.loads((self.source / name).read_text())
            if (manifest["name"], manifest["version"], manifest["license"]) != ("kvstem", self.version, "Apache-2.0"):
                sys.exit(f"{name}: name, version or licence differs from kvstem {self.version} Apache-2.0")
        if f"## {self.version}" not in (self.source / "CHANGELOG.md").read_text():
            sys.exit(f"CHANGELOG.md has no section for {self.version}")
        major_minor = self.version.rsplit(".", 1)[0]
        if f"find_package(kvstem {major_minor} " not in (self.source / "examples/downstream/CMakeLists.txt").read_text():
            sys.exit(f"examples/downstream does not ask for {major_minor}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    for option in ("--source", "--work", "--cmake", "--compiler"):
        parser.add_argument(option, required=True)
    args = parser.parse_args()
    getattr(Check(args), args.case)()


main()
