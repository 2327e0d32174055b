// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Every public template, instantiated whole, in one shared object; check_symbols.py looks at what it needs and exports.
// A new template gets its line below, one for each kind of argument that changes its code.
#include <kvstem/kvstem.hpp>

// base
template class kvstem::Result<int>;
