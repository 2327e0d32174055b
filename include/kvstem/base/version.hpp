// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The version of the library. CMake, pkg-config and the packages read it from here.
// Before 1.0 a minor version may change the interface; a patch version never does.
#pragma once

#define KVSTEM_VERSION_MAJOR 0
#define KVSTEM_VERSION_MINOR 1
#define KVSTEM_VERSION_PATCH 0

namespace kvstem::inline v0 {

struct Version {
  int major, minor, patch;
};

/// The version this header belongs to.
inline constexpr Version kVersion{KVSTEM_VERSION_MAJOR, KVSTEM_VERSION_MINOR, KVSTEM_VERSION_PATCH};

}  // namespace kvstem::inline v0
