// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The one include for Catch2, version 2 or 3. Write what both understand: TEST_CASE, SECTION, GENERATE,
// TEMPLATE_TEST_CASE, REQUIRE, CHECK, Catch::Matchers::WithinAbs.
#pragma once

#ifndef __cpp_exceptions
#define CATCH_CONFIG_DISABLE_EXCEPTIONS
#endif

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
