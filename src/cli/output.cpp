// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "input.hpp"

namespace kvstem::cli {

OutputFile::OutputFile(std::string path)
    : path_(std::move(path)), part_(path_ + ".part" + std::to_string(getpid())), stream_(part_) {
  if (!stream_) throw InputError(path_ + ": cannot be written: " + std::generic_category().message(errno));
}

OutputFile::~OutputFile() {
  if (committed_) return;
  stream_.close();
  std::remove(part_.c_str());
}

void OutputFile::commit() {
  stream_.close();
  if (!stream_ || std::rename(part_.c_str(), path_.c_str()) != 0)
    throw InputError(path_ + ": could not be written: " + std::generic_category().message(errno));
  committed_ = true;
}

}  // namespace kvstem::cli
