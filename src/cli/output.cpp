// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "input.hpp"

namespace kvstem::cli {
namespace fs = std::filesystem;

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
  if (path_ == "-") throw InputError("- is no file: name one");
  std::error_code error;
  if (fs::is_symlink(path_, error)) {
    const fs::path target = fs::weakly_canonical(path_, error);
    if (!error) path_ = target.string();
  }
  const fs::file_status status = fs::status(path_, error);
  if (fs::is_directory(status)) throw InputError(path_ + ": is a folder: name a file in it");
  // A pipe or a device takes what it gets; only a file can be replaced.
  const bool replaced = !fs::exists(status) || fs::is_regular_file(status);
  if (replaced) part_ = path_ + ".part" + std::to_string(getpid());
  stream_.open(replaced ? part_ : path_);
  if (!stream_) throw InputError(path_ + ": cannot be written: " + std::generic_category().message(errno));
}

OutputFile::~OutputFile() {
  if (committed_) return;
  stream_.close();
  if (!part_.empty()) std::remove(part_.c_str());
}

void OutputFile::commit() {
  stream_.close();
  if (!stream_ || (!part_.empty() && std::rename(part_.c_str(), path_.c_str()) != 0))
    throw InputError(path_ + ": could not be written: " + std::generic_category().message(errno));
  committed_ = true;
}

void keep_apart(const std::vector<std::string>& inputs, const std::vector<std::string>& outputs) {
  const auto same = [](const std::string& a, const std::string& b) {
    std::error_code error;
    return a == b || fs::equivalent(a, b, error);
  };
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].empty()) continue;
    for (const std::string& input : inputs)
      if (same(outputs[i], input)) throw InputError(outputs[i] + ": is read as well: write to another file");
    for (std::size_t j = 0; j < i; ++j)
      if (same(outputs[i], outputs[j])) throw InputError(outputs[i] + ": is written twice: name two files");
  }
}

}  // namespace kvstem::cli
