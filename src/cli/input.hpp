// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Lines of a text file that may be compressed: plain, gzip or zstd, told apart by the first bytes. Never holds more than a
// line and a few buffers. What is wrong with the input is thrown as an InputError; what() is one line for the user.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace kvstem::cli {

class InputError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Turns raw bytes into text. One for each format.
class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Appends the text of `raw` to `text`. Throws InputError (without the file's name) if the data is damaged.
  virtual void decode(std::string_view raw, std::string& text) = 0;
  /// Whether the data may end here.
  [[nodiscard]] virtual bool complete() const = 0;
};

class LineReader {
 public:
  /// `path` may be "-" for standard input.
  explicit LineReader(const std::string& path);

  /// The next line without its end; false at the end of the file. The view holds until the next call.
  bool next(std::string_view& line);

  [[nodiscard]] std::uint64_t line_number() const { return line_number_; }
  /// For messages: the path, or what standard input is called.
  [[nodiscard]] const std::string& name() const { return name_; }
  /// How much of the file was read, 0 to 1; 0 where the size is unknown.
  [[nodiscard]] double fraction() const;
  /// An InputError that names the file and the present line.
  [[nodiscard]] InputError error(const std::string& what) const;

 private:
  bool fill();

  std::string name_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::unique_ptr<Decoder> decoder_;
  std::string raw_, text_;
  std::size_t begin_ = 0;     // of text_: where the next line begins
  std::size_t searched_ = 0;  // before this there is no line end
  std::uint64_t line_number_ = 0, bytes_read_ = 0, bytes_ = 0;
};

}  // namespace kvstem::cli
