// What llama.cpp does when one of its assertions fails: it ends the process, unless a guard turns that into an exception.
#pragma once

namespace mullama {

// While one lives, a failed assertion on this thread is a std::runtime_error that names it. For calls that compute nothing
// in ggml's worker threads (loading, making a context, tokenising, sampling), since those cannot be left half-way, and whose
// object is thrown away afterwards. The first line of defence is to check what goes in (gguf_check.hpp); this is the second,
// for what only one of llama.cpp's hundred architectures asks for.
class AbortGuard {
  public:
    AbortGuard();
    ~AbortGuard();
    AbortGuard(const AbortGuard &) = delete;
    AbortGuard & operator=(const AbortGuard &) = delete;
};

// Let the guards work, and without one have the reason printed, briefly; once a process.
void install_abort_guard();

}  // namespace mullama
