// What upstream does with an input that may abort the process: run in a child with limits on its time and memory.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum class Verdict { accepted, refused, died };

inline const char * name_of(Verdict verdict) {
    return verdict == Verdict::accepted ? "accepted" : verdict == Verdict::refused ? "refused" : "died";
}

// `work` returns whether upstream accepts; an exception is a refusal, a signal or a timeout is a death.
template <typename Work>
Verdict in_child(int seconds, Work && work) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const rlimit none{0, 0}, time{rlim_t(seconds), rlim_t(seconds)}, memory{rlim_t(8) << 30, rlim_t(8) << 30};
        setrlimit(RLIMIT_CORE, &none);
        setrlimit(RLIMIT_CPU, &time);
        if (std::getenv("MULLAMA_SANITIZED") == nullptr) setrlimit(RLIMIT_AS, &memory);
        const int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
        int status = 1;
        try {
            status = work() ? 0 : 1;
        } catch (...) {
        }
        _exit(status);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status)) return Verdict::died;
    return WEXITSTATUS(status) == 0 ? Verdict::accepted : Verdict::refused;
}

// One input from standard input: a line with its size, then its bytes. False at the end.
inline bool read_input(std::string & input) {
    size_t size = 0;
    if (std::scanf("%zu", &size) != 1 || std::getchar() != '\n') return false;
    input.resize(size);
    return size == 0 || std::fread(input.data(), 1, size, stdin) == size;
}
