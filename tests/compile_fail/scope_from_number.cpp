// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A number is not a scope: a tenant's own number would name another tenant's state. Scopes come from open_scope.
// expect: (cannot convert|cannot initialize) .*(int.*ScopeId|ScopeId.*int)
#include <kvstem/kvstem.hpp>

kvstem::ScopeId ask(kvstem::ScopeId opened) {
#ifdef KVSTEM_COMPILE_FAIL
  const kvstem::Prompt prompt{.scope = 7};
#else
  const kvstem::Prompt prompt{.scope = opened};
#endif
  return prompt.scope;
}
