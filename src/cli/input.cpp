// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "input.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#ifdef KVSTEM_CLI_ZLIB
#include <zlib.h>
#endif
#ifdef KVSTEM_CLI_ZSTD
#include <zstd.h>
#endif

namespace kvstem::cli {
namespace {

constexpr std::size_t kPiece = 1u << 18;

class Plain : public Decoder {
 public:
  void decode(std::string_view raw, std::string& text) override { text += raw; }
  [[nodiscard]] bool complete() const override { return true; }
};

#ifdef KVSTEM_CLI_ZLIB
class Gzip : public Decoder {
 public:
  Gzip() {
    if (inflateInit2(&stream_, 15 + 16) != Z_OK) throw InputError("zlib has no memory");
  }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;
  ~Gzip() override { inflateEnd(&stream_); }

  void decode(std::string_view raw, std::string& text) override {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(raw.data()));
    stream_.avail_in = static_cast<uInt>(raw.size());
    while (stream_.avail_in > 0) {
      if (complete_) {  // another member follows
        inflateReset(&stream_);
        complete_ = false;
      }
      const std::size_t before = text.size();
      text.resize(before + kPiece);
      stream_.next_out = reinterpret_cast<Bytef*>(text.data() + before);
      stream_.avail_out = kPiece;
      const int status = inflate(&stream_, Z_NO_FLUSH);
      text.resize(before + kPiece - stream_.avail_out);
      if (status != Z_OK && status != Z_STREAM_END) throw InputError("the gzip data is damaged");
      complete_ = status == Z_STREAM_END;
    }
  }
  [[nodiscard]] bool complete() const override { return complete_; }

 private:
  z_stream stream_{};
  bool complete_ = false;
};
#endif

#ifdef KVSTEM_CLI_ZSTD
class Zstd : public Decoder {
 public:
  void decode(std::string_view raw, std::string& text) override {
    ZSTD_inBuffer in{raw.data(), raw.size(), 0};
    for (bool full = true; full || in.pos < in.size;) {
      const std::size_t before = text.size();
      text.resize(before + kPiece);
      ZSTD_outBuffer out{text.data() + before, kPiece, 0};
      const std::size_t left = ZSTD_decompressStream(stream_.get(), &out, &in);
      text.resize(before + out.pos);
      if (ZSTD_isError(left) != 0) throw InputError("the zstd data is damaged");
      complete_ = left == 0;
      full = out.pos == kPiece;
    }
  }
  [[nodiscard]] bool complete() const override { return complete_; }

 private:
  std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> stream_{ZSTD_createDStream(),
                                                                        ZSTD_freeDStream};
  bool complete_ = false;
};
#endif

std::unique_ptr<Decoder> decoder_for(std::string_view raw) {
  if (raw.starts_with("\x1f\x8b")) {
#ifdef KVSTEM_CLI_ZLIB
    return std::make_unique<Gzip>();
#else
    throw InputError("gzip is not built in: decompress it first (gzip -dc FILE | kvstem ... -)");
#endif
  }
  if (raw.starts_with("\x28\xb5\x2f\xfd")) {
#ifdef KVSTEM_CLI_ZSTD
    return std::make_unique<Zstd>();
#else
    throw InputError("zstd is not built in: decompress it first (zstd -dc FILE | kvstem ... -)");
#endif
  }
  return std::make_unique<Plain>();
}

int keep_open(std::FILE*) { return 0; }

}  // namespace

LineReader::LineReader(const std::string& path)
    : name_(path == "-" ? "standard input" : path),
      file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb"), path == "-" ? keep_open : std::fclose) {
  struct stat about{};
  if (file_ == nullptr || fstat(fileno(file_.get()), &about) != 0)
    throw InputError(name_ + ": " + std::generic_category().message(errno));
  if (S_ISDIR(about.st_mode)) throw InputError(name_ + ": is a folder; give a file");
  if (S_ISREG(about.st_mode)) bytes_ = static_cast<std::uint64_t>(about.st_size);
}

bool LineReader::fill() {
  raw_.resize(kPiece);
  raw_.resize(std::fread(raw_.data(), 1, kPiece, file_.get()));
  if (raw_.empty()) {
    if (std::ferror(file_.get()) != 0)
      throw InputError(name_ + ": " + std::generic_category().message(errno));
    if (decoder_ != nullptr && !decoder_->complete())
      throw InputError(name_ + ": the compressed data ends early, after line " +
                       std::to_string(line_number_));
    return false;
  }
  bytes_read_ += raw_.size();
  text_.erase(0, begin_);
  searched_ -= begin_;
  begin_ = 0;
  try {
    if (decoder_ == nullptr) decoder_ = decoder_for(raw_);
    decoder_->decode(raw_, text_);
  } catch (const InputError& e) {
    throw InputError(name_ + ": " + e.what());
  }
  return true;
}

bool LineReader::next(std::string_view& line) {
  std::size_t end;
  while ((end = text_.find('\n', searched_)) == std::string::npos) {
    searched_ = text_.size();
    if (fill()) continue;
    if (begin_ == text_.size()) return false;
    end = text_.size();  // the last line may lack its end
    break;
  }
  line = std::string_view(text_).substr(begin_, end - begin_);
  if (line.ends_with('\r')) line.remove_suffix(1);
  begin_ = searched_ = std::min(end + 1, text_.size());
  ++line_number_;
  return true;
}

double LineReader::fraction() const {
  return bytes_ == 0 ? 0 : static_cast<double>(bytes_read_) / static_cast<double>(bytes_);
}

InputError LineReader::error(const std::string& what) const {
  return InputError(name_ + ": line " + std::to_string(line_number_) + ": " + what);
}

}  // namespace kvstem::cli
