// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <kvstem/base/version.hpp>

int main() {
  std::printf("kvstem %d.%d.%d\n", kvstem::kVersion.major, kvstem::kVersion.minor, kvstem::kVersion.patch);
}
