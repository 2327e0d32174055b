// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Files that a command writes appear whole or not at all.
#pragma once

#include <fstream>
#include <string>

namespace kvstem::cli {

/// Written beside its place and moved there by `commit`; without that, nothing is left of it.
class OutputFile {
 public:
  /// Throws InputError if it cannot be created.
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

}  // namespace kvstem::cli
