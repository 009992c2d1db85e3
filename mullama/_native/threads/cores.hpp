// How many threads compute where the user names no number.
#pragma once

#include <cstdint>

namespace mullama {

// The physical cores that this thread may run on, at most the CPUs that the process's control group has a quota for; at least 1.
// Of a processor with two kinds of cores only the fast ones count.
int32_t default_n_threads();

}  // namespace mullama
