// The number of threads by default, against folders that look like /proc and /sys on machines of several kinds.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "threads/cores.cpp"

#if defined(__linux__)
#include <unistd.h>

namespace {

using Files = std::map<std::string, std::string>;

struct Case {
    const char * name;
    int n_cpus;  // of this process
    Files files;
    int expected;
};

const Files four_cores_of_two{
    {"sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,4\n"},
    {"sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,5\n"},
    {"sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2,6\n"},
    {"sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3,7\n"},
    {"sys/devices/system/cpu/cpu4/topology/thread_siblings_list", "0,4\n"},
    {"sys/devices/system/cpu/cpu5/topology/thread_siblings_list", "1,5\n"},
    {"sys/devices/system/cpu/cpu6/topology/thread_siblings_list", "2,6\n"},
    {"sys/devices/system/cpu/cpu7/topology/thread_siblings_list", "3,7\n"},
};

Files with(Files files, const Files & more) {
    files.insert(more.begin(), more.end());
    return files;
}

const std::vector<Case> cases{
    {"nothing is known", 8, {}, 8},
    {"two threads of a core", 8, four_cores_of_two, 4},
    {"fewer CPUs than cores", 3, four_cores_of_two, 3},
    {"fast cores only", 8, {{"sys/devices/cpu_core/cpus", "0-1,5\n"}, {"sys/devices/cpu_atom/cpus", "2-4,6-7\n"}}, 3},
    {"slow cores only", 2, {{"sys/devices/cpu_core/cpus", "4-7\n"}}, 2},
    {"version 2, no limit", 8, {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/cpu.max", "max 100000\n"}}, 8},
    {"version 2, its own group", 8, {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/cpu.max", "200000 100000\n"}}, 2},
    {"version 2, rounded up", 8, {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/cpu.max", "210000 100000\n"}}, 3},
    {"version 2, less than one", 8, {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/cpu.max", "1000 100000\n"}}, 1},
    {"version 2, the group above",
     8,
     {{"proc/self/cgroup", "0::/a/b/c\n"},
      {"sys/fs/cgroup/a/cpu.max", "200000 100000\n"},
      {"sys/fs/cgroup/a/b/cpu.max", "max 100000\n"},
      {"sys/fs/cgroup/a/b/c/cpu.max", "500000 100000\n"}},
     2},
    {"version 2, in a container", 8, {{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "150000 50000\n"}}, 3},
    {"version 2, a path outside", 8, {{"proc/self/cgroup", "0::/../a\n"}, {"sys/fs/cgroup/cpu.max", "200000 100000\n"}}, 2},
    {"version 1",
     8,
     {{"proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n0::/a\n"},
      {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "150000\n"},
      {"sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}},
     2},
    {"version 1, the host's path",
     8,
     {{"proc/self/cgroup", "4:cpuacct,cpu:/docker/f00\n"},
      {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n"},
      {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}},
     4},
    {"version 1, no limit",
     8,
     {{"proc/self/cgroup", "4:cpu:/\n"},
      {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
      {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}},
     8},
    {"the smaller of cores and quota",
     8,
     with(four_cores_of_two, {{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "600000 100000\n"}}),
     4},
    {"what cannot be read", 8, {{"proc/self/cgroup", "none\n0::/\n"}, {"sys/fs/cgroup/cpu.max", "many 100000\n"}}, 8},
};

}  // namespace

int main() {
    const auto top = std::filesystem::temp_directory_path() / ("mullama-threads-" + std::to_string(getpid()));
    int failed = 0;
    for (const auto & [name, n_cpus, files, expected] : cases) {
        for (const auto & [path, text] : files) {
            std::filesystem::create_directories((top / path).parent_path());
            std::ofstream(top / path) << text;
        }
        std::vector<int> cpus;
        for (int cpu = 0; cpu < n_cpus; ++cpu) cpus.push_back(cpu);
        const int got = mullama::n_threads_for(cpus, top.string());
        if (got != expected) {
            std::printf("%s: %d, not %d\n", name, got, expected);
            ++failed;
        }
        std::filesystem::remove_all(top);
    }
    return failed;
}
#else
int main() {}
#endif
