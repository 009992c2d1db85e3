// llama.cpp's failed assertions as exceptions; see abort_guard.hpp.
#include "checks/abort_guard.hpp"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ggml.h"

namespace mullama {

namespace {

thread_local int guards = 0;

// Called by ggml_abort, which calls abort() if this returns. It is C, without anything to clean up, so that an exception
// passes through its frame and on through those of C++.
void on_abort(const char * message) {
    const char * const slash = std::strrchr(message, '/');
    const std::string text = std::string("llama.cpp refused it at ") + (slash == nullptr ? message : slash + 1);
    if (guards > 0) throw std::runtime_error(text);
    std::fprintf(stderr, "mullama: %s\n", message);
}

}  // namespace

AbortGuard::AbortGuard() { ++guards; }

AbortGuard::~AbortGuard() { --guards; }

void install_abort_guard() { ggml_set_abort_callback(on_abort); }

}  // namespace mullama
