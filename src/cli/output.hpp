// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Files that a command writes appear whole or not at all; pipes and devices are written as they are.
#pragma once

#include <fstream>
#include <string>
#include <vector>

namespace kvstem::cli {

/// Written beside its place and moved there by `commit`; without that, nothing is left of it.
class OutputFile {
 public:
  /// Follows symbolic links. Throws InputError if it cannot be created.
  explicit OutputFile(std::string path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  [[nodiscard]] std::ostream& stream() { return stream_; }
  /// Throws InputError if not everything could be written (a full disk).
  void commit();

 private:
  std::string path_, part_;
  std::ofstream stream_;
  bool committed_ = false;
};

/// Throws InputError if an output is also an input, or is named twice. Empty names are none.
void keep_apart(const std::vector<std::string>& inputs, const std::vector<std::string>& outputs);

}  // namespace kvstem::cli
