// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "input.hpp"

#include <filesystem>
#include <fstream>
#include <string>

#include "capacity.hpp"
#include "support/catch.hpp"
#include "trace.hpp"

namespace {

using namespace kvstem::cli;

/// A file that goes with the test.
class Scratch {
 public:
  explicit Scratch(const std::string& content)
      : path_((std::filesystem::temp_directory_path() / ("kvstem_input_" + std::to_string(::getpid())))
                  .string()) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~Scratch() { std::filesystem::remove(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string request(std::uint32_t tokens, const std::string& ids, std::uint32_t time = 0) {
  return R"({"timestamp": )" + std::to_string(time) + R"(, "input_length": )" + std::to_string(tokens) +
         R"(, "output_length": 1, "hash_ids": [)" + ids + "]}\n";
}

}  // namespace

TEST_CASE("lines are found wherever buffers end, and the last one needs no end") {
  std::string content;
  for (int i = 0; i < 50'000; ++i) content += std::string(static_cast<std::size_t>(i % 97), 'x') + "\n";
  content += "\r\nlast";
  const Scratch file(content);
  LineReader lines(file.path());
  std::string_view line;
  for (int i = 0; i < 50'000; ++i) {
    REQUIRE(lines.next(line));
    REQUIRE(line.size() == static_cast<std::size_t>(i % 97));
  }
  REQUIRE(lines.next(line));
  CHECK(line.empty());
  REQUIRE(lines.next(line));
  CHECK(line == "last");
  CHECK(lines.line_number() == 50'002);
  CHECK_FALSE(lines.next(line));
}

TEST_CASE("a trace becomes a tree of whole blocks") {
  // The last id of the first prompt stands for part of a block; id 2 means another block behind another parent.
  const Scratch file(request(1300, "1, 2, 3") + request(1024, "1, 4") + request(1536, "5, 2, 6") +
                     request(40, "7"));
  const Trace trace = read_trace(file.path(), std::nullopt);
  CHECK(trace.block_tokens == 512);
  CHECK(trace.distinct_blocks() == 6);
  REQUIRE(trace.requests.size() == 4);
  CHECK(trace.path(0).size() == 2);
  CHECK(trace.path(1).size() == 2);
  CHECK(trace.path(0)[0] == trace.path(1)[0]);
  CHECK(trace.path(0)[1] != trace.path(2)[1]);
  CHECK(trace.path(3).empty());
}

TEST_CASE("the tokens of a block are found from the lengths, or given") {
  SECTION("64") {
    CHECK(read_trace(Scratch(request(130, "1, 2, 3") + request(64, "1")).path(), {}).block_tokens == 64);
  }
  SECTION("given") { CHECK(read_trace(Scratch(request(130, "1, 2, 3")).path(), 48).block_tokens == 48); }
  SECTION("given, and the last block that is not whole has no id") {
    const Trace trace = read_trace(Scratch(request(150, "1, 2, 3")).path(), 48);
    CHECK(trace.path(0).size() == 3);
  }
  SECTION("given, and the line has fewer ids than whole blocks") {
    CHECK_THROWS_AS(read_trace(Scratch(request(1000, "1, 2, 3")).path(), 48), InputError);
  }
}

TEST_CASE("capacities are blocks, percent or bytes") {
  CHECK(Capacity::parse("4096").blocks(10, 512, 0) == 4096);
  CHECK(Capacity::parse("5%").blocks(1000, 512, 0) == 50);
  CHECK(Capacity::parse("1.5%").blocks(1000, 512, 0) == 15);
  CHECK(Capacity::parse("16GiB").blocks(10, 512, 131072) == 256);
  for (const char* text : {"", "0", "-1", "0%", "five", "5 %", "3.5", "16GiBB", "nan", "inf"})
    CHECK_THROWS_AS(Capacity::parse(text), InputError);
  CHECK_THROWS_AS(Capacity::parse("16GiB").blocks(10, 512, 0), InputError);
  CHECK(Capacity::parse("1%").blocks(10, 512, 0) == 1);
}
